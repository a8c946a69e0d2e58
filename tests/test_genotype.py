import json
import random
import re
from dataclasses import FrozenInstanceError, astuple, replace
from pathlib import Path

import pytest
from reference import pruned

from nni_fairdarts import genotype as module
from nni_fairdarts.edges import KNOWN_OPERATIONS, OPERATIONS, Edge, cell_sample, prune
from nni_fairdarts.errors import InputError
from nni_fairdarts.genotype import PUBLISHED_NAMES, Genotype, parse, published, resolve

GOLDEN = json.loads((Path(__file__).parent / "golden" / "genotypes.json").read_text())["genotypes"]
FAIR = Genotype([("sep_conv_3x3", 2, 0), ("skip_connect", 4, 3)], [Edge("skip_connect", 2, 1)], (2, 4), [2, 5])
EMPTY = Genotype((), ())
PLAIN = "Genotype(normal=[], normal_concat=[2], reduce=[], reduce_concat=[2])"


def fails(message):
    return pytest.raises(InputError, match=re.escape(message))


def random_genotype(rng):
    def cell():
        nodes = [rng.randint(2, 6) for _ in range(rng.randint(0, 9))]
        return [(rng.choice(KNOWN_OPERATIONS), node, rng.randrange(node)) for node in nodes]

    concats = [rng.sample(range(2, 7), rng.randint(0, 5)) for _ in range(2)]
    return Genotype(cell(), cell(), *concats)


RANDOM = [random_genotype(random.Random(seed)) for seed in range(50)]
PUBLISHED = [published(name) for name in PUBLISHED_NAMES]


def test_operations_are_those_of_nni():
    from nni.nas.hub.pytorch.nasnet import OPS

    assert set(KNOWN_OPERATIONS) == set(OPS) - {"none"}
    assert len(set(KNOWN_OPERATIONS)) == len(KNOWN_OPERATIONS)
    assert list(OPERATIONS) == json.loads((Path(__file__).parent / "golden" / "parse.json").read_text())["operations"]


@pytest.mark.parametrize("name", GOLDEN)
def test_published(name):
    expected, genotype = GOLDEN[name], published(name)
    fair = name.startswith("FairDARTS")
    assert genotype.style == ("fairdarts" if fair else "darts")
    assert genotype == parse(expected["published_as"]) == resolve(name)
    for cell in ("normal", "reduce"):
        edges = getattr(genotype, cell)
        assert [list(astuple(e) if fair else (e.operation, e.source)) for e in edges] == expected[cell]
        assert list(getattr(genotype, f"{cell}_concat")) == expected[f"{cell}_concat"]
        if not fair:
            assert [edge.node for edge in edges] == [2, 2, 3, 3, 4, 4, 5, 5]
    if "=range" in expected["published_as"]:
        assert genotype.to_text() == expected["published_as"]


def test_published_names():
    assert tuple(GOLDEN) == PUBLISHED_NAMES
    with fails(f"unknown published genotype 'fairdarts_a'; known: {', '.join(GOLDEN)}"):
        published("fairdarts_a")


@pytest.mark.parametrize("genotype", [*RANDOM, *PUBLISHED, FAIR, EMPTY])
def test_round_trips(genotype, tmp_path):
    assert parse(genotype.to_text()) == genotype
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    path = tmp_path / "genotype.json"
    genotype.save(path)
    assert Genotype.load(path) == resolve(path) == resolve(str(path)) == genotype
    back = Genotype.from_sample({**genotype.to_sample(), "width": 16, "normal": 1, "other/op_x": 2}, nodes=5)
    for cell in ("normal", "reduce"):
        assert getattr(back, cell) == tuple(sorted(getattr(genotype, cell), key=lambda edge: edge.node))
        assert getattr(back, f"{cell}_concat") == (2, 3, 4, 5, 6)


def test_lists_become_tuples_and_nothing_changes_later():
    assert FAIR.normal == (Edge("sep_conv_3x3", 2, 0), Edge("skip_connect", 4, 3))
    assert FAIR.reduce_concat == (2, 5)
    assert hash(FAIR) == hash(replace(FAIR))
    with pytest.raises(FrozenInstanceError):
        FAIR.style = "darts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "pdarts"}, "unknown style 'pdarts'; known: fairdarts, darts"),
        ({"normal": [("none", 2, 0)]}, "normal[0]: unknown operation 'none'; known: max_pool_3x3, avg_pool_3x3, "),
        ({"reduce": [("conv_1x1", 2, 0), ("conv_1x1", 3)]}, "reduce[1] must be (operation, node, source), got"),
        ({"normal": [("conv_1x1", 3, 3)]}, "normal[0]: node must be a whole number from 2"),
        ({"normal": [("conv_1x1", 3, 3)]}, "source one from 0 below node, got node 3 and source 3"),
        ({"normal": [("conv_1x1", 1, 0)]}, "got node 1 and source 0"),
        ({"normal": [("conv_1x1", 2, -1)]}, "got node 2 and source -1"),
        ({"normal": [("conv_1x1", 2, True)]}, "got node 2 and source True"),
        ({"normal": [("conv_1x1", 2.0, 0)]}, "got node 2.0 and source 0"),
        ({"normal": "conv"}, "normal must be a list of edges, got 'conv'"),
        ({"reduce_concat": (2, 2)}, "reduce_concat must be a list of different node numbers from 2, got (2, 2)"),
        ({"normal_concat": (1, 2)}, "normal_concat must be a list of different node numbers from 2, got (1, 2)"),
        ({"normal_concat": 4}, "normal_concat must be a list of different node numbers from 2, got 4"),
        ({"style": "darts"}, "style darts needs exactly two edges for each of the nodes 2, 3, ... in order; normal"),
        ({"style": "darts"}, "has edges for the nodes 2, 4; use style fairdarts for any other number"),
        (
            {"style": "darts", "normal": [("conv_1x1", 2, 0)] * 2, "normal_concat": (2, 3)},
            "normal_concat of style darts must name nodes that have edges, [2]; got [2, 3]",
        ),
        ({"style": "darts", "normal": [("conv_1x1", 2, 0)] * 3, "normal_concat": (2,)}, "nodes 2, 2, 2;"),
        ({"style": "darts", "normal": [("conv_1x1", 2, 0)], "normal_concat": (2,)}, "nodes 2;"),
    ],
)
def test_invalid_genotypes(change, message):
    with fails(message):
        replace(FAIR, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2, and this package reads up to version 1; upgrade nni-fairdarts"),
        ({"version": 2, "new": 1}, "upgrade nni-fairdarts"),
        ({"version": "1"}, "version must be a whole number from 1, got '1'"),
        ({"version": True}, "version must be a whole number from 1, got True"),
        ({"extra": 1}, "unknown keys in a genotype: extra; known: version, style, normal, normal_concat, reduce"),
        ({"reduce": {}}, "reduce must be a list of edges, got {}"),
        ({"normal": [[["a"], 2, 0]]}, "normal[0]: unknown operation ['a']"),
        ({"normal_concat": "2345"}, "normal_concat must be a list"),
        ({"style": 3}, "unknown style 3"),
    ],
)
def test_invalid_json_values(change, message):
    with fails(message):
        Genotype.from_json({**FAIR.to_json(), **change})


@pytest.mark.parametrize("key", FAIR.to_json())
def test_missing_json_key(key):
    with fails(f"missing: {key}"):
        Genotype.from_json({k: v for k, v in FAIR.to_json().items() if k != key})


def test_json_is_versioned():
    assert FAIR.to_json() == {
        "version": 1,
        "style": "fairdarts",
        "normal": [["sep_conv_3x3", 2, 0], ["skip_connect", 4, 3]],
        "normal_concat": [2, 4],
        "reduce": [["skip_connect", 2, 1]],
        "reduce_concat": [2, 5],
    }
    with fails("a genotype must be a JSON object, got []"):
        Genotype.from_json([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "holds no genotype: Expecting"),
        (b"", "holds no genotype: expected the text Genotype("),
        (b"\xff", "holds no genotype: 'utf-8' codec"),
        (b"[" * 9999, "holds no genotype: "),
        (b'{"a":' * 99999, "holds no genotype: "),
        (b'{"version": 9}', "holds no genotype: version is 9"),
        (None, "No such file or directory; check the path"),
    ],
)
def test_broken_files(content, message, tmp_path):
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        Genotype.load(path)


def test_load_reads_the_published_text(tmp_path):
    path = tmp_path / "found.txt"
    path.write_text(f"\nDARTS = {published('DARTS_V2').to_text()}\n")
    assert Genotype.load(path) == published("DARTS_V2")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "genotype.json"
    FAIR.save(path)
    monkeypatch.setattr(module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with fails(f"cannot write a genotype to {path}: No space left; choose another path"):
        EMPTY.save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert Genotype.load(path) == FAIR
    with fails("cannot write a genotype to"):
        FAIR.save(path / "below")


def test_save_is_readable_text(tmp_path):
    FAIR.save(tmp_path / "g.json")
    assert (tmp_path / "g.json").read_text().splitlines()[3:5] == [
        '  "normal": [["sep_conv_3x3", 2, 0],',
        '    ["skip_connect", 4, 3]],',
    ]


@pytest.mark.parametrize("name", ["", "best = ", "\n found=\n"])
def test_parse_accepts_a_name_in_front(name):
    assert parse(name + FAIR.to_text()) == resolve(name + FAIR.to_text()) == FAIR


@pytest.mark.parametrize("edges", ["('conv_1x1', 2, 0)", "('conv_1x1', 0), ('conv_1x1', 1)"])
def test_an_empty_cell_follows_the_other(edges):
    genotype = parse(PLAIN.replace("normal=[]", f"normal=[{edges}]"))
    assert genotype.style == ("darts" if "1)" in edges else "fairdarts")
    assert genotype.reduce == ()
    assert parse(genotype.to_text()) == genotype


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("normal=[]", "normal=__import__('os').system('touch evaluated')", "the only call allowed inside"),
        ("normal=[]", "normal=[(__import__('os').system('touch evaluated'), 2, 0)]", "malformed node"),
        ("normal=[]", "normal=open('evaluated', 'w')", "the only call allowed inside is range(a, b)"),
        ("normal=[]", "normal=[x for x in ()]", "malformed node"),
        ("normal=[]", "**{}", "its fields are None, normal_concat, reduce, reduce_concat"),
        ("normal=[]", "normal=[], normal=[]", "expected the text Genotype("),
        ("normal=[], ", "", "its fields are normal_concat, reduce, reduce_concat"),
        ("normal=[]", "[]", "not a call of Genotype with named fields"),
        ("Genotype", "open", "not a call of Genotype with named fields"),
        ("Genotype", "os.Genotype", "not a call of Genotype with named fields"),
        ("Genotype", "x == Genotype", "invalid syntax"),
        (PLAIN, "", "got '': "),
        (PLAIN, "[1]", "not a call of Genotype"),
        (PLAIN, PLAIN + "; 1", "invalid syntax"),
        (PLAIN, PLAIN + "\0", "null bytes"),
        ("=[]", "=" + "[" * 5000, "expected the text Genotype("),
        ("=[]", "=" + "-" * 99999 + "1", "expected the text Genotype("),
        ("=[2]", "=range(6)", "the only call allowed inside is range(a, b) with whole numbers"),
        ("=[2]", "=range(2, 6, 1)", "the only call allowed inside"),
        ("=[2]", "=range(2, n)", "malformed node"),
        ("=[2]", "=range(2, 10**12)", "malformed node"),
        ("=[2]", "=range(2, 1000000000000)", "range(2, 1000000000000) is no cell's list of nodes"),
        ("=[2]", "=list(range(2, 6))", "malformed node"),
        ("=[2]", "={[]}", "unhashable"),
        ("normal=[]", "normal=7", "normal must be a list of tuples, got 7"),
        ("normal=[]", "normal=['ab']", "normal must be a list of tuples, got ['ab']"),
        ("normal=[]", "normal=[('conv_1x1', 2, 0), ('conv_1x1', 0)]", "got tuples of length 2, 3"),
        ("=[]", "=[()]", "edges must be all (operation, node, source) or all (operation, source), in both cells alike"),
        ("normal=[]", "normal=[('conv_1x1', 0)]", "style darts needs exactly two edges"),
        ("normal=[]", "normal=[('eval', 2, 0)]", "normal[0]: unknown operation 'eval'"),
    ],
)
def test_parse_refuses(old, new, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fails(message):
        parse(PLAIN.replace(old, new))
    assert not list(tmp_path.iterdir())


def test_parse_refuses_cells_of_different_forms():
    text = PLAIN.replace("normal=[]", "normal=[('conv_1x1', 2, 0)]")
    with fails("in both cells alike; got tuples of length 2, 3"):
        parse(text.replace("reduce=[]", "reduce=[('conv_1x1', 0), ('conv_1x1', 1)]"))


@pytest.mark.parametrize("value", ["missing.json", 7, "x" * 5000])
def test_resolve_names_all_possibilities(value):
    with fails("is neither the path of a genotype file (there is no such file), nor a text") as caught:
        resolve(value)
    assert str(caught.value).endswith(
        f"that starts with Genotype(, nor a published name; known names: {', '.join(GOLDEN)}"
    )
    assert len(str(caught.value)) < 500


def test_sample_is_nnis():
    assert FAIR.to_sample() == {
        "normal/op_2_0": "sep_conv_3x3",
        "normal/input_2_0": [0],
        "normal/op_4_0": "skip_connect",
        "normal/input_4_0": [3],
        "reduce/op_2_0": "skip_connect",
        "reduce/input_2_0": [1],
    }
    darts = published("DARTS_V2")
    assert Genotype.from_sample(darts.to_sample(), style="darts") == darts


def test_slots_count_a_nodes_edges_in_their_order():
    edges = [Edge("conv_1x1", 3, 2), Edge("conv_3x3", 2, 0), Edge("conv_3x3", 3, 0)]
    assert cell_sample("stem/a", edges) == {
        "stem/a/op_3_0": "conv_1x1",
        "stem/a/input_3_0": [2],
        "stem/a/op_2_0": "conv_3x3",
        "stem/a/input_2_0": [0],
        "stem/a/op_3_1": "conv_3x3",
        "stem/a/input_3_1": [0],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal/op_3_0": "conv_1x1"}, "the sample has normal/op_3_0 without normal/input_3_0; give both or neither"),
        ({"reduce/input_3_0": [0]}, "the sample has reduce/input_3_0 without reduce/op_3_0; give both or neither"),
        (
            {"normal/op_2_2": "conv_1x1", "normal/input_2_2": [0]},
            "the sample has normal/op_2_2 but no normal/op_2_1; number slots from 0",
        ),
        ({"normal/input_2_0": [0, 1]}, "normal/input_2_0 must be a list of one node, got [0, 1]"),
        ({"normal/input_2_0": 0}, "normal/input_2_0 must be a list of one node, got 0"),
        ({"normal/input_2_0": [2]}, "normal/op_2_0: node must be"),
        ({"normal/op_2_0": "none"}, "normal/op_2_0: unknown operation 'none'; known: max_pool_3x3"),
        ({"normal/op_2": "x"}, "expected normal/op_NODE_SLOT or normal/input_NODE_SLOT in a sample, got 'normal/op_2'"),
        ({"normal/op_a_b": "x"}, "got 'normal/op_a_b'"),
        ({"reduce/ops_2_0": "x"}, "got 'reduce/ops_2_0'"),
        (
            {"normal/op_6_0": "conv_1x1", "normal/input_6_0": [0]},
            "normal/op_6_0: a cell of 4 nodes has nodes [2, 3, 4, 5], got node 6",
        ),
    ],
)
def test_malformed_samples(change, message):
    with fails(message):
        Genotype.from_sample({**FAIR.to_sample(), **change})


@pytest.mark.parametrize(
    ("edges", "left"),
    [
        ([(4, 3), (2, 0)], [(2, 0)]),
        ([(5, 4), (4, 3), (3, 2), (2, 1)], [(5, 4), (4, 3), (3, 2), (2, 1)]),
        ([(5, 4), (4, 3), (3, 2)], []),  # one dropped node after the other
        ([(5, 4), (4, 3), (4, 1)], [(5, 4), (4, 1)]),
        ([], []),
    ],
)
def test_prune_cascades(edges, left):
    assert [(e.node, e.source) for e in prune(Edge("conv_1x1", *edge) for edge in edges)] == left


def test_prune_with_other_inputs():
    edges = (Edge("conv_1x1", 3, 2),)
    assert (prune(edges), prune(edges, inputs=3)) == ((), edges)


@pytest.mark.parametrize("genotype", RANDOM)
def test_pruned(genotype):
    result = genotype.pruned()
    for cell in ("normal", "reduce"):
        edges, concat = getattr(genotype, cell), f"{cell}_concat"
        expected = pruned([astuple(edge) for edge in edges])
        assert [astuple(edge) for edge in getattr(result, cell)] == expected
        left = {node for _, node, _ in expected}
        assert list(getattr(result, concat)) == [node for node in getattr(genotype, concat) if node in left]
    assert result.pruned() == result


def test_pruning_leaves_darts_genotypes_alone():
    genotype = replace(published("DARTS_V2"), reduce=())
    assert genotype.pruned() is genotype


def test_loose_ends():
    edges = [("conv_1x1", 2, 0), ("conv_1x1", 3, 2), ("conv_1x1", 5, 4)]  # 5 <- 4 is pruned, so 4 is not used
    genotype = Genotype(edges, (), style="fairdarts").loose_ends()
    assert (genotype.normal_concat, genotype.reduce_concat) == ((3, 4, 5), (2, 3, 4, 5))
    assert genotype.pruned().normal_concat == (3,)


def test_str():
    assert str(FAIR) == (
        "normal\n  2 = sep_conv_3x3(0)\n  output = 2 (dropped: 4)\n"
        "reduce\n  2 = skip_connect(1)\n  output = 2 (dropped: 5)"
    )
    assert str(published("FairDARTS_a")).splitlines()[:4] == [
        "normal",
        "  2 = sep_conv_3x3(0) + sep_conv_5x5(1)",
        "  4 = max_pool_3x3(0)",
        "  5 = sep_conv_3x3(0)",
    ]
    assert "  output = 2, 4, 5 (dropped: 3)\nreduce" in str(published("FairDARTS_a"))
    assert str(published("DARTS_V2")).endswith("  output = 2, 3, 4, 5")
    assert "output = nothing (dropped: 2, 3, 4, 5)" in str(EMPTY)


def test_skip_connections():
    assert FAIR.skip_connections() == {"normal": 1, "reduce": 1}
    assert published("DARTS_V2").skip_connections() == {"normal": 2, "reduce": 3}
    assert EMPTY.skip_connections() == {"normal": 0, "reduce": 0}
