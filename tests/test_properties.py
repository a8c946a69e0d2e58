"""What holds for any gates, genotypes, configurations, histories and parameters: by hypothesis, the same each time."""

import json
from dataclasses import astuple, fields, is_dataclass, replace
from typing import Literal, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reference import OPERATIONS, derived_logits, derived_parameters, kept, pruned

from nni_fairdarts import InputError
from nni_fairdarts.arguments import known_fields, read_config
from nni_fairdarts.config import RunConfig, to_yaml
from nni_fairdarts.config.parts import StageConfig
from nni_fairdarts.discretize import RULES, discretize
from nni_fairdarts.edges import Edge
from nni_fairdarts.genotype import Genotype, parse
from nni_fairdarts.history import append_epoch, read_history
from nni_fairdarts.network import DerivedNetwork, count_parameters
from nni_fairdarts.parameters import applied
from nni_fairdarts.yaml_files import read_mapping

pytestmark = pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
SAME = {"derandomize": True, "deadline": None, "database": None}
SAME["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

values = st.one_of(st.sampled_from([0.0, 0.5, 0.85, 1.0]), st.floats(0, 1))


def or_refused(function, *arguments):
    """What a function returns, or the text of its InputError."""
    try:
        return function(*arguments)
    except InputError as error:
        return str(error)


@st.composite
def matrices(draw, nodes):
    """Gates of a cell, (edges, operations), of a few values: many are equal."""
    few = draw(st.lists(values, min_size=1, max_size=6))
    random = draw(st.randoms(use_true_random=False))
    return [[random.choice(few) for _ in OPERATIONS] for _ in range(sum(range(2, 2 + nodes)))]


def strongest(gates):
    """The strongest operation on an input, of equal ones the first: [(operation, node, source)]."""
    found, row, node = [], 0, 2
    while row < len(gates):
        for source in (0, 1):
            found += [(gate, op, node, source) for op, gate in zip(OPERATIONS, gates[row + source], strict=True)]
        row, node = row + node, node + 1
    return [max(found, key=lambda one: one[0])[1:]]


def tuples(edges):
    return [astuple(edge) for edge in edges]


@settings(max_examples=150, **SAME)
@given(st.data(), st.integers(1, 4), st.sampled_from(sorted(RULES)), st.one_of(values, st.just(0.6)))
def test_gates_become_a_genotype_that_every_form_keeps(data, nodes, rule, threshold):
    normal, reduce = (data.draw(matrices(nodes)) for _ in range(2))
    if not 0 < threshold < 1:
        with pytest.raises(InputError, match=r"threshold must be in \(0, 1\)"):
            discretize(normal, reduce, rule, threshold)
        return
    genotype = discretize(normal, reduce, rule, threshold)
    for cell, gates in (("normal", normal), ("reduce", reduce)):
        naive = kept(gates, rule, threshold, OPERATIONS)
        assert tuples(getattr(genotype, cell)) == (naive if pruned(naive) else strongest(gates))
        assert tuples(getattr(genotype.pruned(), cell)) == pruned(tuples(getattr(genotype, cell)))
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    assert parse(genotype.to_text()) == genotype
    assert Genotype.from_sample(genotype.to_sample(), nodes, genotype.style) == genotype


@settings(max_examples=25, **SAME)
@given(st.data(), st.integers(1, 4), st.sampled_from(sorted(RULES)), st.floats(0.01, 0.99))
def test_gates_become_a_network(data, nodes, rule, threshold):
    genotype = discretize(*(data.draw(matrices(nodes)) for _ in range(2)), rule, threshold)
    check_network(Genotype.from_json(genotype.to_json()))


@st.composite
def cells(draw, count=4):
    """Edges of a cell in any order, some on nodes that nothing reaches."""
    edges = []
    for node in range(2, 2 + count):
        for source in draw(st.lists(st.integers(0, node - 1), max_size=3)):
            edges.append(Edge(draw(st.sampled_from(OPERATIONS)), node, source))
    return draw(st.permutations(edges))


@settings(max_examples=25, **SAME)
@given(cells(), cells())
@example([Edge("skip_connect", 3, 2), Edge("sep_conv_3x3", 2, 0)], [Edge("skip_connect", 2, 1)])
def test_any_genotype_becomes_a_network_or_is_refused(normal, reduce):
    genotype = Genotype(normal, reduce)
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    assert parse(genotype.to_text()) == genotype
    if all(pruned(tuples(edges)) for edges in (normal, reduce)):
        check_network(genotype)
    else:
        with pytest.raises(InputError, match="keeps no operation that its inputs reach"):
            DerivedNetwork(genotype, 2, 3)


def check_network(genotype):
    """A network of width 2 and 3 cells puts out, and has as many parameters as, what is written by hand."""
    torch.manual_seed(0)
    network = DerivedNetwork(genotype, 2, 3, num_classes=5, in_channels=1, image_size=8).double()
    cells = {}
    for cell in ("normal", "reduce"):
        edges = tuples(getattr(genotype, cell))
        cells[cell] = edges if genotype.style == "darts" else pruned(edges)
    assert count_parameters(network) == derived_parameters(cells, 2, 3, 5, 1)
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    network.train()
    network(images)  # for statistics other than 0 and 1
    with torch.no_grad():
        logits = network.eval()(images)
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, derived_logits(network, cells, genotype.style, images), rtol=0, atol=1e-10)


# -- configurations ---------------------------------------------------------------------------------------------------

words = st.one_of(
    st.sampled_from(["1e3", "yes", "null", "~", "1", "0x1f", "1:30", "2020-01-01", "-", "a: b", "#", "'", '"', ".5"]),
    st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"]), min_size=1, max_size=9),
)
valid = {
    "width": st.sampled_from([2, 16, 4096]), "num_cells": st.integers(3, 1000), "seed": st.integers(0, 2**32 - 1),
    "workers": st.integers(0, 1024),
    "threads": st.one_of(st.none(), st.integers(1, 99)), "image_size": st.one_of(st.none(), st.integers(1, 999)),
    "search_classes": st.one_of(st.none(), st.integers(2, 99)), "momentum": st.floats(0, 0.999),
    "search_images_per_class": st.one_of(st.none(), st.integers(2, 99)), "train_portion": st.floats(0.01, 0.99),
    "threshold": st.floats(0.01, 0.99), "arc_betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    "temperature": st.tuples(st.floats(1, 9), st.floats(0.01, 1)), "drop_path_prob": st.floats(0, 0.9),
    "label_smoothing": st.floats(0, 0.9), "learning_rate_decay": st.floats(0.01, 1), "evaluator": st.just("a:b"),
    "metric": words.map("val_{}".format), "runs": words.filter(lambda word: word.isprintable()), "root": words,
    "name": words.filter(lambda word: word.strip(".") and not {"/", "\\"} & set(word)),
    "arguments": st.just({}), "cuda_graphs": st.just(False), "random_skips": st.none(),
    "early_stopping": st.lists(st.sampled_from(["skips", "ranking", "eigenvalue"])),
    "operations": st.one_of(st.none(), st.lists(st.sampled_from(OPERATIONS), min_size=1)),
    "stages": st.lists(
        st.builds(StageConfig, cells=st.none() | st.integers(1, 99), keep=st.booleans(), share=st.floats(0.1, 9))
    ),
}  # fmt: skip
kinds = {bool: st.booleans(), int: st.integers(1, 10**9), float: st.floats(1e-300, 1e300)}


def words_of(kind) -> tuple:
    """The words of a Literal, or of one that may be unset; none of another type."""
    every = [kind, *get_args(kind)]
    return next((get_args(one) for one in every if get_origin(one) is Literal), ())


@st.composite
def configurations(draw, plain):
    """``plain`` with values of their kind in some fields."""
    changes = {}
    for one in fields(plain):
        value = getattr(plain, one.name)
        if is_dataclass(value):
            if one.name != "penalty":
                changes[one.name] = draw(configurations(value))
        elif (one.name not in ("name", "strategy") or isinstance(plain, RunConfig)) and draw(st.booleans()):
            if one.name in valid:
                changes[one.name] = draw(valid[one.name])
            elif words_of(one.type):
                changes[one.name] = draw(st.sampled_from(words_of(one.type)))
            else:
                kind = next(kind for kind in (*get_args(one.type), one.type) if kind in kinds)
                changes[one.name] = draw(kinds[kind])
    return replace(plain, **changes)


@settings(max_examples=20, **SAME)
@given(configurations(RunConfig()))
def test_a_configuration_is_read_back(tmp_path, config):
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", ["1e3", "yes", "null", "~", "1", "0x1f", "1:30", "2020-01-01", "-", "1_0", ".5", "1."])
def test_a_name_stays_a_word(tmp_path, name):
    config = replace(RunConfig(), name=name)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config


@settings(max_examples=100, **SAME)
@given(st.one_of(st.binary(max_size=40), st.text("abc:{}[]&*!-\n\t '\"#|>?%,01", max_size=40).map(str.encode)))
def test_any_bytes_are_a_mapping_or_refused(tmp_path, content):
    (tmp_path / "any.yaml").write_bytes(content)
    found = or_refused(read_mapping, tmp_path / "any.yaml", "something else")
    assert isinstance(found, dict) or str(tmp_path / "any.yaml") in found


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=60, **SAME)
@given(st.dictionaries(st.one_of(st.sampled_from(known_fields()), st.sampled_from(["strategy", "epochs", "seed"]),
                                 st.text(max_size=5)), plain, max_size=2))  # fmt: skip
def test_any_parameters_fit_or_are_refused(parameters):
    found = or_refused(applied, RunConfig(), parameters)
    assert isinstance(found, RunConfig) or found


# -- genotypes and histories in files ---------------------------------------------------------------------------------

TEXT = Genotype([Edge("skip_connect", 2, 0)], [Edge("sep_conv_3x3", 3, 1)]).to_text()
KEYS = ("version", "style", "normal", "normal_concat", "reduce", "reduce_concat")


@settings(max_examples=100, **SAME)
@given(st.one_of(
    st.dictionaries(st.sampled_from(KEYS), plain, max_size=6).map(json.dumps),
    st.tuples(st.integers(0, len(TEXT)), st.text(max_size=4)).map(lambda cut: TEXT[: cut[0]] + cut[1] + TEXT[cut[0] :]),
))  # fmt: skip
def test_any_file_is_a_genotype_or_refused(tmp_path, content):
    (tmp_path / "any.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    found = or_refused(Genotype.load, tmp_path / "any.json")
    assert isinstance(found, Genotype) or str(tmp_path / "any.json") in found


@settings(max_examples=60, **SAME)
@given(st.lists(st.dictionaries(st.text(max_size=4), plain, max_size=3), min_size=1, max_size=4), st.data())
def test_a_history_that_was_cut_is_a_prefix(tmp_path, records, data):
    path = tmp_path / "history.jsonl"
    path.unlink(missing_ok=True)
    for number, record in enumerate(records):
        append_epoch(path, {**record, "epoch": number})
    whole, content = read_history(path), path.read_bytes()
    assert [record["epoch"] for record in whole] == list(range(len(records)))
    place = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:place])
    found = read_history(path)
    assert json.dumps(found) == json.dumps(whole[: len(found)])
    assert len(found) == content[:place].count(b"\n") + (content[place : place + 1] == b"\n")
    append_epoch(path, {"epoch": len(found)})  # a search goes on behind it
    assert [record["epoch"] for record in read_history(path)] == list(range(len(found) + 1))


@settings(max_examples=60, **SAME)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_history_or_refused(tmp_path, content):
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    found = or_refused(read_history, path)
    assert f"of the history {path}" in found if isinstance(found, str) else all("epoch" in record for record in found)
