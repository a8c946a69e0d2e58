"""Input that nobody would write on purpose, and some that somebody would: one line of error each, nothing touched."""

import hashlib
import io
import json
import os
import pickle
import re
import shlex
import sqlite3
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from experiments import RUN, choice, command
from nni.runtime.trial_command_channel.base import TrialCommandChannel
from PIL import Image
from torch._utils import ExceptionWrapper

from nni_fairdarts import InputError, experiment, folder
from nni_fairdarts.arguments import changed, read_config
from nni_fairdarts.cli import main
from nni_fairdarts.config import RunConfig, to_yaml
from nni_fairdarts.datasets import load
from nni_fairdarts.failures import unexpected
from nni_fairdarts.genotype import published

TINY = {
    **RUN,
    "data": {"name": "digits", "flip": False, "crop_padding": 1},
    "space": {"width": 2, "num_cells": 3, "operations": ["skip_connect", "max_pool_3x3"]},
    "search": {"epochs": 1, "batch_size": 300, "gap_batches": 0},
}
RUN_YAML = yaml.safe_dump({**TINY, "runs": ".", "name": "run"})
MARK = "somebody-was-here"  # a file that only code out of somebody's file would make
MINE = """
import torch

def raising(*args, **kwargs): raise KeyError("no such\\nthing")
def leaving(*args, **kwargs): raise SystemExit(0)
def nothing(*args, **kwargs): return None
def images(count=600): return [(torch.zeros(1, 8, 8, dtype=torch.uint8), i % 2) for i in range(count)]
def good(root): return images(), images(20), 2
def half(root): return images(), images(20), 2.5
def unlabelled(root): return [(torch.zeros(1, 8, 8, dtype=torch.uint8), "cat")] * 9, images(20), 2
class Broken(list):
    def __getitem__(self, index):
        if index == 5: raise RuntimeError("the disk is gone")
        return torch.zeros(1, 8, 8, dtype=torch.uint8), index % 2
class Endless:
    def __len__(self): raise OverflowError("too many")
    def __getitem__(self, index): return images(1)[0]
class Widening(list):
    def __getitem__(self, index): return (torch.zeros(1, 8, 8 + index % 2, dtype=torch.uint8), index % 2)
def broken(root): return Broken(range(600)), images(20), 2
def widening(root): return Widening(range(600)), images(20), 2
def endless(root): return Endless(), images(20), 2
"""


class Case(NamedTuple):
    """A command, words that its error has, in this order, and files and variables that it meets."""

    command: str
    says: list[str]
    files: dict = {}  # path: text, bytes, a function of the path, or None for a folder
    environment: dict = {}  # None: not set


# -- what files hold -------------------------------------------------------------------------------------------------


class Code:
    """Pickled, a call of os.system."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


def array(*shape, value=0.5, dtype=float, **options) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, np.full(shape, value, dtype=dtype), **options)
    return file.getvalue()


def archive(content) -> bytes:
    """A checkpoint as torch writes them."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def flipped(content: bytes, at: float = 0.5) -> bytes:
    """The same bytes but for one bit."""
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def picture(mode="RGB", size=(8, 8), form="PNG", image=None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.new(mode, size)).save(file, form, **options)
    return file.getvalue()


def gigantic() -> bytes:
    """The beginning of a PNG file of 60,000 × 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">II", zlib.crc32(head), 9) + b"IDAT"


def link(target: str):
    return lambda path: path.symlink_to(target)


def laughs(value: str, levels: int = 9) -> str:
    """YAML that stands for 10^levels times ``value``."""
    lines = [f"a0: &a0 {value}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


def genotype(**changes) -> str:
    return json.dumps({**published("FairDARTS_a").to_json(), **changes})


def epoch(number=0, **changes) -> str:
    gates = {cell: [[0.9] * 7] * 14 for cell in ("normal", "reduce")}
    return json.dumps({"epoch": number, "seconds": 1.0, "val_acc": 0.5, "gates": gates, **changes}) + "\n"


def database(profile: str | None, *metrics: tuple) -> bytes:
    """NNI's database of an experiment with one trial."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "create table ExperimentProfile (id text, params text, revision int);"
        "create table TrialJobEvent (timestamp int, trialJobId text, event text, data text, sequenceId int);"
        "create table MetricData (timestamp int, trialJobId text, parameterId text, type text, data text);"
    )
    connection.execute("insert into ExperimentProfile values ('abc', ?, 1)", [profile])
    for name in ("WAITING", "SUCCEEDED"):
        connection.execute("insert into TrialJobEvent values (1, 'T', ?, '{\"parameter_id\": []}', 0)", [name])
    connection.executemany("insert into MetricData values (2, 'T', ?, 'FINAL', ?)", metrics)
    content = connection.serialize()
    connection.close()
    return content


def nni(**changes) -> str:
    """An experiment in NNI's own format."""
    plain = {
        "trialCommand": "nni-fairdarts trial --config tiny.yaml",
        "trialCodeDirectory": ".",
        "trialConcurrency": 1,
        "searchSpace": {"seed": choice(0)},
        "tuner": {"name": "GridSearch"},
        "trainingService": {"platform": "local"},
    }
    return yaml.safe_dump({key: value for key, value in {**plain, **changes}.items() if value is not ...})


def classes(*broken, **parts) -> dict:
    """A folder of images, two classes of 12 and 2; ``broken`` are the bytes of one in the middle of the training."""
    files = {}
    for part, count in (("train", 12), ("test", 2)):
        for label in ("cat", "dog"):
            files |= {f"images/{part}/{label}/{i:02}.png": picture() for i in range(count)}
    if broken:
        files["images/train/dog/05.png"] = broken[0]
    return {path: content for path, content in files.items() if not path.startswith(tuple(parts.get("without", ())))}


# -- the table --------------------------------------------------------------------------------------------------------

SEARCH = "search --config tiny.yaml"
FOLDER = f"{SEARCH} --data.name folder --data.root images --data.image_size 8 --search.batch_size 4"
RETRAIN = "retrain --config tiny.yaml --genotype"
NAMES = "as --print_config prints one"


def configured(text: str, *says: str) -> Case:
    return Case(f"{SEARCH} --config bad.yaml", list(says), {"bad.yaml": text})


CONFIGURATIONS = {
    "epochs are NaN": configured("search: {epochs: .nan}", "search.epochs", "a whole number", "nan"),
    "epochs are 1e30": configured("search: {epochs: 1.0e+30}", "search.epochs", "a whole number", "1e+30"),
    "epochs are 10^30": configured(f"search: {{epochs: 1{'0' * 30}}}", "search.epochs", "at most 1000000000", "10000"),
    "epochs are a truth": configured("search: {epochs: true}", "search.epochs", "a whole number", "True"),
    "no epochs": configured("search: {epochs: null}", "search.epochs must be given, got null; leave it out"),
    "epochs below 0": configured("retrain: {epochs: -3}", "retrain.epochs must be at least 1, got -3"),
    "a rate that is NaN": configured("search: {learning_rate: .nan}", "search.learning_rate", "a finite number", "nan"),
    "a rate past every float": configured("search: {learning_rate: 1e400}", "search.learning_rate", "finite", "inf"),
    "a rate in words": configured("search: {learning_rate: fast}", "search.learning_rate", "number", "fast"),
    "a rate in a list": configured("search: {learning_rate: [1]}", "search.learning_rate", "number", "[1]"),
    "alpha begins at infinity": configured("search: {alpha_init: -.inf}", "search.alpha_init", "finite", "-inf"),
    "one beta": configured("search: {arc_betas: [0.9]}", "search.arc_betas", "2 elements", "[0.9]"),
    "betas beyond 1": configured("search: {arc_betas: [0.9, 2]}", "search.arc_betas", "two numbers in [0, 1)", "2.0"),
    "an infinite temperature": configured("search: {temperature: [.inf, 1]}", "search.temperature", "finite", "inf"),
    "nine random skips of eight": configured(
        "search: {strategy: random, random_skips: 9}", "search.random_skips", "0 to 8", "got 9"
    ),
    "random skips of darts": configured("search: {strategy: darts, random_skips: 2}", "unset with darts", "got 2"),
    "random skips of none": configured(
        "search: {strategy: random, random_skips: 2}\nspace: {operations: [max_pool_3x3]}", "with skip_connect", "got 2"
    ),
    "a penalty in a word": configured("search: {penalty: flops}", "search.penalty", "flops"),
    "a penalty of infinity": configured(
        "search: {penalty: {profiler: flops, baseline: .inf}}", "search.penalty.baseline", "finite", "inf"
    ),
    "a width of 10^9": configured("space: {width: 1000000000}", "space.width must be at most 4096, got 1000000000"),
    "a network of 10^9": configured("retrain: {width: 1000000000}", "retrain.width must be at most 4096", "1000000000"),
    "10^9 cells": configured("space: {num_cells: 999999999}", "space.num_cells must be at most 1000, got 999999999"),
    "a batch of 10^9": configured("search: {batch_size: 999999999}", "batch_size 999999999", "at most 718 works"),
    "images of 10^9 pixels": configured("data: {image_size: 1000000000}", "data.image_size", "at most 8192", "10000"),
    "images of less than nothing": configured("data: {image_size: -1}", "data.image_size", "at least 1", "-1"),
    "a crop beyond the image": configured("data: {crop_padding: 9}", "crop_padding", "at most the images' 8", "9; 0"),
    "workers below 0": configured("data: {workers: -3}", "data.workers must be 0 or more, got -3"),
    "a seed of 2^40": configured("seed: 1099511627776", "run.seed must be at most 4294967295, got 1099511627776"),
    "10^9 threads": configured("threads: 1000000000", "run.threads must be at most 4096, got 1000000000"),
    "a device of another maker": configured("device: tpu", "device", "'auto', 'cpu', 'cuda'", "tpu"),
    "a metric that is none": configured("metric: 3", "metric", "3"),
    "no name": configured("name: ''", "run.name must be a folder's name without slashes", "got ''"),
    "a name out of the runs": configured("name: ..", "run.name must be a folder's name without slashes", "'..'"),
    "a name with a zero": configured('name: "a\\0b"', "run.name must be a folder's name", r"'a\x00b'"),
    "a name of two lines": configured('name: "a\\nb"', "run.name must be a folder's name", r"'a\nb'"),
    "a name of 300 letters": configured(f"name: {'é' * 150}", "run.name", "at most 200 bytes", "ééé"),
    "no place for runs": configured("runs: ''", "run.runs must be the path of a folder, got ''"),
    "runs with a zero": configured('runs: "a\\0b"', "run.runs must be the path of a folder", r"a\x00b"),
    "runs of 5000 letters": configured(f"runs: {'x' * 5000}", "cannot make the folder xxx", "too long", "--runs"),
    "no operations": configured("space: {operations: []}", "operations must be some of", "skip_connect", "got none"),
    "an operation of another kind": configured("space: {operations: [conv_9x9]}", "some of", "got conv_9x9"),
    "an operation twice": configured("space: {operations: [skip_connect, skip_connect]}", "each once", "skip_connect"),
    "a space in a list": configured("space: [1]", "bad.yaml: space must be a section", "[1]", "leave it out"),
    "a section of nothing": configured("search:", "bad.yaml: search must be a section", "None", "leave it out"),
    "an unknown name": configured("search: {epoch: 2}", "'search.epoch'", "did you mean search.epochs?"),
    "of a version to come": configured(to_yaml(RunConfig()) + "colour: red\n", "unknown name 'colour'", "Known: name"),
    "a number for a name": configured("1: 2", "bad.yaml has the name 1", "must be a word"),
    "a file in a file": configured("config: tiny.yaml", "bad.yaml has the name config", "give --config twice"),
    "nothing": configured("", "bad.yaml must hold names and values", "got nothing", NAMES),
    "a list": configured("[1, 2]", "bad.yaml must hold names and values", "got list", NAMES),
    "a word": configured("hello", "bad.yaml must hold names and values", "got str", NAMES),
    "a picture": configured(picture(), "bad.yaml is not text in UTF-8", "byte 0", NAMES),
    "another encoding": configured("name: é".encode("latin-1"), "bad.yaml is not text in UTF-8", "byte 6", NAMES),
    "two megabytes": configured("#" * 2_000_000, "bad.yaml has more than 1,048,576 bytes", NAMES),
    "a bracket left open": configured("search: {epochs: 2", "bad.yaml is not YAML", "line 1, column 19", "mend it"),
    "a tab": configured("search:\n\tepochs: 2", "bad.yaml is not YAML", "'\\t'", "line 2, column 1", "mend it"),
    "two documents": configured("seed: 1\n---\nseed: 2", "bad.yaml is not YAML", "single document", "mend it"),
    "a name given twice": configured("seed: 1\nseed: 3", "'seed' is given 2 times (line 1, column 1); mend it"),
    "a name given twice inside": configured("search: {epochs: 1, epochs: 3}", "'epochs' is given 2 times", "mend it"),
    "600 brackets": configured("search: " + "[" * 600 + "]" * 600, "bad.yaml is not YAML", "inside each other"),
    "a value that holds itself": configured("space: &a {arguments: *a}", "a value holds itself (line 1, column 8)"),
    "a billion laughs": configured(laughs("ha"), "bad.yaml is not YAML", "aliases", "more than 100,000 values"),
    "code": configured(
        f"name: !!python/object/apply:os.system ['touch {MARK}']", "could not determine a constructor", "os.system"
    ),
    "a folder for a configuration": Case(
        f"{SEARCH} --config bad.yaml", ["cannot read bad.yaml: Is a directory", NAMES], {"bad.yaml": None}
    ),
    "a file that cannot be read": Case(f"{SEARCH} --config /proc/self/mem", ["cannot read /proc/self/mem", NAMES]),
    "runs where nothing can be made": Case(f"{SEARCH} --runs /proc", ["cannot make the folder /proc/search", "--runs"]),
    "a link to nowhere": Case(
        f"{SEARCH} --config bad.yaml", ["cannot read bad.yaml: No such file", NAMES], {"bad.yaml": link("gone")}
    ),
    "a link to itself": Case(
        f"{SEARCH} --config=bad.yaml", ["cannot read bad.yaml: Too many levels", NAMES], {"bad.yaml": link("bad.yaml")}
    ),
    "a file of 300 letters": Case(f"{SEARCH} --config {'x' * 300}", ["cannot read xxx", "too long", NAMES]),
    "a file where runs should be": Case(f"{SEARCH} --runs mine.py", ["cannot make the folder mine.py", "--runs"]),
    "runs linked to nowhere": Case(
        f"{SEARCH} --runs bad", ["cannot make the folder bad/search", "--runs"], {"bad": link("gone/further")}
    ),
    "a run linked to nowhere": Case(
        f"{SEARCH} --runs . --name bad", ["bad exists already", "another --name"], {"bad": link("gone")}
    ),
    "a run that is there": Case(f"{SEARCH} --runs . --name run", ["run exists already", "another --name"]),
    "a command that is none": Case("serch --config tiny.yaml", ["serch", "search"]),
    "a flag that is none": Case(f"{SEARCH} --serch.epochs 3", ["serch.epochs", "did you mean search.epochs?"]),
    "a flag of nothing": Case(f"{SEARCH} --seed", ["--seed", "expected one argument"]),
    "no device": Case(
        f"{SEARCH} --device cuda", ["device cuda", "torch sees no CUDA device", "--device auto or cpu"],
        environment={"CUDA_VISIBLE_DEVICES": ""},
    ),
}  # fmt: skip

VARIABLES = {
    "threads in words": Case(
        SEARCH, ["OMP_NUM_THREADS must be a number of threads", "got 'abc'", "unset"], {}, {"OMP_NUM_THREADS": "abc"}
    ),
    "no threads": Case(SEARCH, ["MKL_NUM_THREADS", "at least 1", "got '0'"], {}, {"MKL_NUM_THREADS": "0"}),
    "devices in words": Case(
        SEARCH, ["CUDA_VISIBLE_DEVICES must be numbers", "got 'all of them'", "unset"], {},
        {"CUDA_VISIBLE_DEVICES": "all of them"},
    ),
    "a trial without a folder": Case(
        "trial --config tiny.yaml", ["NNI_OUTPUT_DIR is not set", "nni-fairdarts launch"], {},
        {"NNI_OUTPUT_DIR": None, "NNI_TRIAL_JOB_ID": "T"},
    ),
    "a trial without an id": Case(
        "trial --config tiny.yaml", ["NNI_TRIAL_JOB_ID is not set", "nni-fairdarts launch"], {},
        {"NNI_OUTPUT_DIR": "run", "NNI_TRIAL_JOB_ID": None},
    ),
    "a trial's folder that is none": Case(
        "trial --config tiny.yaml", ["NNI_OUTPUT_DIR must be a folder", "'mine.py'", "experimentWorkingDirectory"], {},
        {"NNI_OUTPUT_DIR": "mine.py", "NNI_TRIAL_JOB_ID": "T"},
    ),
    "no home": Case(
        "launch --config exp.yaml --port 17999", ["HOME must be a folder", "'/dev/null/me'", "set HOME"],
        {"exp.yaml": nni()}, {"HOME": "/dev/null/me"},
    ),
}  # fmt: skip


def retrained(content, *says: str) -> Case:
    return Case(f"{RETRAIN} bad.json", list(says), {"bad.json": content})


GENOTYPES = {
    "nothing": retrained("", "bad.json holds no genotype", "expected the text Genotype("),
    "half a file": retrained(genotype()[:99], "bad.json holds no genotype", "line 1"),
    "a picture": retrained(picture(), "bad.json holds no genotype", "utf-8"),
    "a folder": retrained(None, "cannot read a genotype from bad.json: Is a directory"),
    "a link to itself": retrained(link("bad.json"), "bad.json", "published name", "FairDARTS_a"),
    "a list": retrained("[1]", "bad.json holds no genotype", "[1]"),
    "a key too many": retrained(genotype(colour=1), "unknown keys in a genotype: colour", "known: version"),
    "a key too few": retrained('{"version": 1}', "missing: style"),
    "a version to come": retrained(genotype(version=2), "version is 2", "upgrade nni-fairdarts"),
    "a version of NaN": retrained(genotype(version=float("nan")), "version must be a whole number from 1, got nan"),
    "an unknown style": retrained(genotype(style="enas"), "unknown style 'enas'; known: fairdarts, darts"),
    "an unknown operation": retrained(genotype(normal=[["conv_9x9", 2, 0]]), "normal[0]", "'conv_9x9'", "known: max"),
    "no operation": retrained(genotype(normal=[[["a"], 2, 0]]), "normal[0]", "unknown operation ['a']", "known: max"),
    "an edge from a later node": retrained(genotype(reduce=[["skip_connect", 2, 3]]), "reduce[0]", "source 3"),
    "an edge from itself": retrained(genotype(reduce=[["skip_connect", 2, 2]]), "reduce[0]", "below node", "source 2"),
    "a node of 10^9": retrained(genotype(normal=[["skip_connect", 10**9, 0]]), "node must be at most 1000, got 10"),
    "a node that is no number": retrained(genotype(normal=[["skip_connect", True, 0]]), "normal[0]", "got node True"),
    "a pooling that shrinks": retrained(
        genotype(normal=[["max_pool_2x2", 2, 1]]), "normal cell has max_pool_2x2 from node 1 to 2", "put another"
    ),
    "thousands of edges": retrained(
        genotype(normal=[["skip_connect", 2, 0]] * 5000), "normal must have at most 1000 edges, got 5000"
    ),
    "an edge of four": retrained(genotype(normal=[[1, 2, 3, 4]]), "normal[0] must be (operation, node, source)"),
    "a word for edges": retrained(genotype(normal="skip"), "normal must be a list of edges, got 'skip'"),
    "nodes to join twice": retrained(genotype(normal_concat=[2, 2]), "normal_concat", "different", "[2, 2]"),
    "no nodes to join": retrained(genotype(reduce_concat=[]), "the reduce cell of this genotype keeps no operation"),
    "nothing kept": retrained(genotype(normal=[]), "the normal cell", "lower threshold"),
    "empty cells of DARTS": retrained(genotype(normal=[], style="darts"), "the normal cell", "lower threshold"),
    "DARTS with three edges": retrained(
        genotype(style="darts", normal=[["skip_connect", 2, 0]] * 3), "style darts needs exactly two", "fairdarts"
    ),
    "100,000 brackets": retrained('{"a":' + "[" * 100_000, "bad.json holds no genotype"),
    "code": retrained(f"Genotype(normal=__import__('os').system('touch {MARK}'))", "bad.json holds no genotype"),
    "a range of 10^12": retrained(
        "Genotype(normal=[], normal_concat=range(2, 10**12), reduce=[], reduce_concat=[])", "bad.json holds no genotype"
    ),
    "no file": Case(f"{RETRAIN} FairDART_a", ["'FairDART_a' is neither", "FairDARTS_a"]),
    "a folder that is none": Case("retrain nowhere", ["there is no run folder nowhere", "runs/NAME"]),
    "a run's damaged genotype": Case(
        "retrain run", ["run/genotype.json holds no genotype"], {"run/genotype.json": "{"}
    ),
    "a run's damaged configuration": Case(
        "retrain run", ["run/config.yaml is not text in UTF-8"], {"run/config.yaml": b"\xff"}
    ),
    "a configuration to come": Case(
        "retrain run", ["run/config.yaml", "'search.colour'", "Known: search.strategy"],
        {"run/config.yaml": "search: {colour: 3}"},
    ),
    "results inside another folder": Case("retrain run --into a/b", ["--into", "without slashes", "'a/b'"]),
}  # fmt: skip


def derived(content, *says: str, words: str = "", file: str = "gates/reduce_weight.npy") -> Case:
    return Case(
        f"derive gates {words}", list(says), {"gates/normal_weight.npy": array(14, 7, value=0.9), file: content}
    )


def recorded(content, *says: str, command: str = "derive run") -> Case:
    return Case(command, list(says), {"run/history.jsonl": content})


GATES = {
    "NaN": derived(array(14, 7, value=np.nan), "gates: ", "gates must be in [0, 1], got nan in row 0", "sigmoid"),
    "over 1": derived(array(14, 7, value=1.5), "gates must be in [0, 1], got 1.5", "sigmoid"),
    "a row too few": derived(array(13, 7), "gates must have one row per edge", "got 13"),
    "a column too many": derived(array(14, 8), "gates must have 7 columns", "row 0 has 8"),
    "a line": derived(array(14), "gates must be a matrix"),
    "a number": derived(array(), "gates must be a matrix"),
    "a cube": derived(array(14, 7, 2), "gates must be in [0, 1], got ["),
    "no gates": derived(array(0, 7), "gates must have one row per edge", "got 0"),
    "complex": derived(array(14, 7, dtype=complex), "reduce_weight.npy: got complex128", "array of numbers"),
    "words": derived(array(14, 7, value="0.5", dtype="U3"), "reduce_weight.npy: got <U3", "array of numbers"),
    "dates": derived(array(14, 7, value="2020", dtype="M8[D]"), "reduce_weight.npy: got datetime64", "of numbers"),
    "code": derived(
        array(1, value=Code(), dtype=object, allow_pickle=True), "reduce_weight.npy", "allow_pickle", "of numbers"
    ),
    "plain code": derived(pickle.dumps(Code()), "reduce_weight.npy", "array of numbers"),
    "half a file": derived(array(14, 7)[:300], "cannot read gates from gates/reduce_weight.npy", "array of numbers"),
    "an empty file": derived("", "cannot read gates from gates/reduce_weight.npy", "array of numbers"),
    "a header of 10^18 rows": derived(
        array(14, 7).replace(b"(14, 7), }" + b" " * 17, b"(10" + b"0" * 17 + b", 7), }"), "_weight.npy", "of numbers"
    ),
    "a folder": derived(None, "cannot read gates from gates/reduce_weight.npy", "array of numbers"),
    "an archive": derived(archive({"a": 1}), "cannot read gates from gates/reduce_weight.npy", "array of numbers"),
    "a threshold of NaN": derived(array(14, 7), "threshold", "number", "nan", words="--threshold nan"),
    "a threshold of 1": derived(array(14, 7), "threshold must be in (0, 1), got 1.0; the", words="--threshold 1"),
    "an unknown rule": derived(array(14, 7), "unknown rule 'best'; known: darts", words="--discretization best"),
    "an output that is there": derived(array(14, 7), "mine.py exists already", words="--output mine.py"),
    "an output linked to nowhere": Case("derive run --output bad", ["bad exists already"], {"bad": link("gone")}),
    "an output in no folder": derived(array(14, 7, value=0.9), "cannot write a genotype to a/b", words="--output a/b"),
    "a folder without gates": Case("derive images", ["images is neither a run folder"], {"images": None}),
    "no folder": Case("derive nowhere", ["nowhere", "neither a run folder"]),
    "a file for a folder": Case("derive mine.py", ["cannot read gates from mine.py", "Not a directory"]),
    "no history": recorded("", "run/history.jsonl holds no finished epoch", "let the search run"),
    "a history that is a folder": recorded(None, "cannot read the history run/history.jsonl: Is a directory"),
    "a broken line": recorded('{"epoch": 0\n' + epoch(1), "line 1 of the history run/history.jsonl", "damaged"),
    "another program's history": recorded('{"loss": 3}\n', "line 1 of the history", "another program"),
    "a history of numbers": recorded("1\n2\n", "line 1 of the history", "another program"),
    "a history of bytes": recorded(b"\xff\xfe\n" + epoch().encode(), "line 1 of the history", "damaged"),
    "a history of brackets": recorded("[" * 100_000 + "\n" + epoch(1), "line 1 of the history", "damaged"),
    "gates of NaN": recorded(epoch(gates={"normal": [[float("nan")] * 7] * 14, "reduce": []}), "history.jsonl", "nan"),
    "gates of words": recorded(epoch(gates="many"), "run/history.jsonl has no gates of a normal and a reduce cell"),
    "gates of one cell": recorded(epoch(gates={"normal": []}), "no gates of a normal and a reduce cell"),
    "operations of no cell": recorded(epoch(operations=[3]), "has no gates of a normal and a reduce cell"),
    "operations that are numbers": recorded(epoch(operations={"normal": [1] * 7}), "operation", "1"),
    "operations that are a number": recorded(epoch(operations={"normal": 7}), "no gates of a normal and a reduce cell"),
}  # fmt: skip

CHECKPOINT = "run/checkpoints/epoch000-step00000003.ckpt"
WHOLE = {"state_dict": {}, "loops": {}, "epoch": 0, "global_step": 3, "pytorch-lightning_version": "2.6.0"}
PARTS = {
    "random": [], "seed": 0, "epoch": 1, "batches": 0, "batches_per_epoch": 3, "stopping": False,
    "plateaus_wait": False, "seconds": 1.0, "metrics": {},
}  # fmt: skip


def resumed(content, *says: str, file: str = CHECKPOINT) -> Case:
    return Case("search --resume run", list(says), {file: content})


CHECKPOINTS = {
    "no folder": Case("search --resume nowhere", ["there is no run folder nowhere", "runs/NAME"]),
    "a file": Case("search --resume mine.py", ["there is no run folder mine.py", "runs/NAME"]),
    "no run": Case("search --resume images", ["images is no run folder", "config.yaml"], {"images": None}),
    "an empty checkpoint": resumed("", CHECKPOINT, "damaged", "search again"),
    "a folder for a checkpoint": resumed(None, CHECKPOINT, "Is a directory", "search again"),
    "a link to itself": resumed(link("epoch000-step00000003.ckpt"), CHECKPOINT, "Too many levels", "search again"),
    "a text": resumed("weights", CHECKPOINT, "damaged", "search again"),
    "half a checkpoint": resumed(archive({"a": torch.zeros(999)})[:2000], CHECKPOINT, "damaged", "search again"),
    "a bit of a checkpoint": resumed(flipped(archive({"a": torch.zeros(999)})), CHECKPOINT, "damaged"),
    "another program's": resumed(archive({"model": torch.zeros(3)}), CHECKPOINT, "search again"),
    "another program's, much like ours": resumed(archive(WHOLE), CHECKPOINT, "search again"),
    "of ours, with parts missing": resumed(archive({**WHOLE, "nni_fairdarts": {}}), CHECKPOINT, "search again"),
    "of ours, with other parts": resumed(archive({**WHOLE, "nni_fairdarts": 3}), CHECKPOINT, "search again"),
    "another program's list": resumed(archive([1, 2]), CHECKPOINT, "search again"),
    "one with code": resumed(archive({"state_dict": Code()}), CHECKPOINT, "search again"),
    "one of old with code": resumed(pickle.dumps({"state_dict": Code()}, 2), CHECKPOINT, "search again"),
    "a broken line of history": recorded("{\n" + epoch(1), "line 1 of the history", command="search --resume run"),
    "a checkpoint beside a broken history": Case(
        "search --resume run", ["line 1 of the history run/history.jsonl", "damaged", "take the file from a copy"],
        {CHECKPOINT: archive({**WHOLE, "nni_fairdarts": PARTS}), "run/history.jsonl": "{\n" + epoch(1)},
    ),
    "history, but no checkpoint": recorded(
        epoch() + epoch(1), "history.jsonl has finished epochs", "no checkpoint", "deriv", command="search --resume run"
    ),
    "a configuration with code": resumed(
        f"!!python/object/apply:os.system ['touch {MARK}']", "run/config.yaml is not YAML", file="run/config.yaml"
    ),
    "a configuration that is a folder": resumed(None, "run is no run folder", file="run/config.yaml"),
}  # fmt: skip

DATA = {
    "no folder": Case(FOLDER, ["cannot read the image folder", "images", "train/CLASS/*.png"]),
    "a file": Case(FOLDER, ["the data root must be a folder", "images", "--data.root"], {"images": "a file"}),
    "a link to itself": Case(FOLDER, ["cannot read the image folder", "images"], {"images": link("images")}),
    "a root with a zero": configured('data: {root: "a\\0b"}', "data.root must be the path of a folder", r"a\x00b"),
    "an empty root": configured("data: {root: ''}", "data.root must be the path of a folder, got ''"),
    "a class too few": Case(
        FOLDER, ["train and test have different classes", "dog", "train/CLASS"], classes(without=["images/train/dog"])
    ),
    "an empty class": Case(
        FOLDER, ["no valid file", "dog"], {**classes(without=["images/train/dog"]), "images/train/dog": None}
    ),
    "one class": Case(
        FOLDER, ["at least 2 classes", "has 1"], classes(without=["images/train/dog", "images/test/dog"])
    ),
    "no size": Case(f"{SEARCH} --data.name folder --data.root images", ["needs image_size", "32"], classes()),
    "fewer images than a batch": Case(f"{FOLDER} --search.batch_size 13", ["batch_size 13", "at most 12"], classes()),
    "no CIFAR": Case(f"{SEARCH} --data.name cifar10", ["cannot read cifar10", "cifar-10-python.tar.gz", "--data.down"]),
    "damaged CIFAR": Case(
        f"{SEARCH} --data.name cifar10 --data.root .", ["cannot read cifar10", "damaged", "cifar-10-python.tar.gz"],
        {f"cifar-10-batches-py/{name}": pickle.dumps(Code()) for name in ("data_batch_1", "batches.meta")},
    ),
    "no such set": Case(f"{SEARCH} --data.name mnist", ["unknown data set 'mnist'; known: digits, cifar10"]),
    "no module": Case(f"{SEARCH} --data.name nowhere:f", ["data function 'nowhere:f'", "ModuleNotFoundError", "PYTH"]),
    "no function": Case(f"{SEARCH} --data.name mine:f", ["data function 'mine:f'", "no attribute 'f'", "module:f"]),
    "a module with a mistake": Case(
        f"{SEARCH} --data.name typo:f", ["data function 'typo:f'", "SyntaxError"], {"typo.py": "def f(:"}
    ),
    "a module that ends everything": Case(
        f"{SEARCH} --data.name leave:f", ["data function 'leave:f'", "SystemExit: 3"], {"leave.py": "exit(3)"}
    ),
    "a function that raises": Case(
        f"{SEARCH} --data.name mine:raising", ["data function 'mine:raising' raised KeyError", "no such", "_DEBUG=1"]
    ),
    "a function that ends everything": Case(
        f"{SEARCH} --data.name mine:leaving", ["data function 'mine:leaving' raised SystemExit: 0", "_DEBUG=1"]
    ),
    "a function of nothing": Case(f"{SEARCH} --data.name mine:nothing", ["mine:nothing must return", "got NoneType"]),
    "a function of other arguments": Case(f"{SEARCH} --data.name mine:images", ["mine:images", "'root'"]),
    "half a class": Case(f"{SEARCH} --data.name mine:half", ["mine:half", "whole number of classes", "got 2.5"]),
    "labels in words": Case(f"{SEARCH} --data.name mine:unlabelled", ["image 0 of mine:unlabelled (train)", "'cat'"]),
    "images without end": Case(f"{SEARCH} --data.name mine:endless", ["mine:endless (train)", "a length", "Endless"]),
    "a space that raises": configured("space: mine:raising", "model space mine:raising: KeyError", "space.arguments"),
    "a space that ends everything": configured("space: mine:leaving", "model space mine:leaving: SystemExit: 0"),
    "a space that is none": configured("space: mine:nothing", "mine:nothing must make a model space", "NoneType"),
    "a space of other arguments": configured(
        "space: {name: 'mine:images', arguments: {colour: 1}}", "model space mine:images", "colour", "space.arguments"
    ),
    "no such space": configured("space: {name: mine}", "space.name must be darts, or module:Class", "'mine'"),
    "an evaluator that raises": configured("evaluator: mine:raising", "evaluator 'mine:raising' raised KeyError"),
    "an evaluator that is none": configured(
        "evaluator: mine:nothing", "mine:nothing must return NNI's Lightning evaluator", "NoneType"
    ),
}  # fmt: skip


def launched(content, *says: str) -> Case:
    return Case("launch --config exp.yaml --port 17999", list(says), {"exp.yaml": content})


def varied(space, *says: str) -> Case:
    return launched(nni(searchSpace=space), *says)


NNI = {
    "no file": Case("launch --config exp.yaml", ["cannot read exp.yaml: No such file", "NNI experiment's YAML file"]),
    "nothing": launched("", "exp.yaml must hold names and values", "got nothing"),
    "a picture": launched(picture(), "exp.yaml is not text in UTF-8"),
    "a folder": launched(None, "cannot read exp.yaml: Is a directory"),
    "code": launched(f"a: !!python/object/apply:os.system ['touch {MARK}']", "exp.yaml is not YAML", "os.system"),
    "a billion laughs": launched(laughs("ha"), "exp.yaml is not YAML", "100,000 values"),
    "a name given twice": launched("debug: true\ndebug: false", "'debug' is given 2 times"),
    "an unknown name": launched(nni(trialComand="x"), "unknown name trialComand; did you mean trialCommand?"),
    "numbers for names": launched("1: 2", "unknown name 1"),
    "a command that is a number": launched(nni(trialCommand=3), "exp.yaml", "trial_command (3)"),
    "a command that is no trial": launched(nni(trialCommand="nni-fairdarts serch"), "is no trial", "trial --config"),
    "a command left open": launched(nni(trialCommand="nni-fairdarts trial '"), "is no command", "No closing quotation"),
    "trials in words": launched(nni(trialConcurrency="many"), "exp.yaml", "trial_concurrency"),
    "fewer trials than none": launched(nni(trialConcurrency=-1), "exp.yaml", "trial_concurrency"),
    "a service in a word": launched(nni(trainingService="local"), "trainingService must hold names", "'local'"),
    "machines in a word": launched(
        nni(trainingService={"platform": "remote", "machineList": "a"}), "exp.yaml", "machine_list ('a')"
    ),
    "a tuner in a list": launched(nni(tuner=[1]), "exp.yaml: tuner must hold names and values (name: TPE), got [1]"),
    "a space in a word": varied("seed", "searchSpace must hold names", "'seed'"),
    "a space in a list": varied([1], "searchSpace must hold names", "[1]"),
    "nothing to vary": varied({}, "searchSpace is empty"),
    "an entry that is a number": varied({"seed": 3}, "search space's seed must be a mapping", "got 3"),
    "an unknown parameter": varied({"sead": choice(1)}, "'sead'", "did you mean seed"),
    "a parameter of NaN": varied({"threshold": choice(0.5, float("nan"))}, "threshold: nan does not fit", "finite"),
    "a parameter of another kind": varied({"epochs": choice("ten")}, "epochs: 'ten' does not fit", "whole number"),
    "a parameter that holds more": varied({"epochs": choice({"_name": {"a": [1]}})}, "epochs", "does not fit"),
    "a choice without a name": varied({"strategy": choice({"epochs": 3})}, "nested choice", "needs a _name"),
    "a choice of nothing": varied({"seed": choice()}, "search space's seed must be a mapping", "_value"),
    "an unknown draw": varied({"seed": {"_type": "dice", "_value": [6]}}, "_type 'dice'", "NNI knows choice"),
    "a range of words": varied({"seed": {"_type": "randint", "_value": ["a", 3]}}, "randint takes 2 numbers", "'a'"),
    "a range of NaN": varied({"threshold": {"_type": "uniform", "_value": [float("nan"), 1]}}, "threshold", "nan"),
    "a range past numbers": varied({"threshold": {"_type": "lognormal", "_value": [1e9, 1]}}, "threshold", "10000000"),
    "where the run goes": varied({"runs": choice("/tmp")}, "cannot vary 'runs'"),
    "a port of 10^9": Case(
        "launch --config exp.yaml --port 1000000000", ["port must be in 1 to 65535, got 10000"], {"exp.yaml": nni()}
    ),
    "a port in words": Case("launch --config exp.yaml --port high", ["port", "whole number", "high"]),
    "two experiments": Case("launch --config exp.yaml --view abc", ["one of --config FILE", "--view ID"]),
    "resume of none": Case("launch --resume nowhere/abc", ["there is no folder nowhere/abc"]),
    "results of none": Case("results nowhere/abc", ["there is no folder nowhere/abc", "where it is now"]),
    "results of a folder": Case("results ./run", ["run is not an experiment's folder", "db/nni.sqlite"]),
    "an empty database": Case("results ./abc", ["nni.sqlite cannot be read", "no such"], {"abc/db/nni.sqlite": ""}),
    "a text for a database": Case(
        "results ./abc", ["nni.sqlite cannot be read", "not a database"], {"abc/db/nni.sqlite": "x" * 999}
    ),
    "half a database": Case(
        "results ./abc", ["nni.sqlite cannot be read", "malformed"], {"abc/db/nni.sqlite": database("{}")[:9000]}
    ),
    "results that cannot be written": Case(
        "results ./abc --csv run", ["cannot write run", "--csv"], {"abc/db/nni.sqlite": database("{}")}
    ),
    "resume of half a configuration": Case(
        "launch --resume ./abc", ["abc/db/nni.sqlite", "no configuration"], {"abc/db/nni.sqlite": database("{")}
    ),
    "resume of a list": Case(
        "launch --resume ./abc", ["abc/db/nni.sqlite", "no configuration"], {"abc/db/nni.sqlite": database("[1]")}
    ),
    "resume of a configuration to come": Case(
        "launch --resume ./abc", ["configuration in abc", "colour", "launch it anew"],
        {"abc/db/nni.sqlite": database('{"colour": 3}')},
    ),
}  # fmt: skip

TABLE = {
    f"{part.lower()}: {name}": case
    for part, cases in {
        "CONFIGURATION": CONFIGURATIONS,
        "VARIABLE": VARIABLES,
        "GENOTYPE": GENOTYPES,
        "GATES": GATES,
        "CHECKPOINT": CHECKPOINTS,
        "DATA": DATA,
        "NNI": NNI,
    }.items()
    for name, case in cases.items()
}


# -- each row ---------------------------------------------------------------------------------------------------------


def put(folder: Path, files: dict) -> None:
    """Write files, some in the place of others."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or path.is_symlink():
            path.unlink()
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def state(folder: Path) -> dict:
    """Every path below ``folder``, and what is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        else:
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder: a configuration, a search that is stopped before its result, and a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("NNI_FAIRDARTS_DEBUG", raising=False)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run = {"config.yaml": RUN_YAML, "history.jsonl": epoch(), "genotype.json": genotype()}
    put(tmp_path, {"mine.py": MINE, **{f"run/{name}": content for name, content in run.items()}})
    yield tmp_path
    for name in ("mine", "typo", "leave"):
        sys.modules.pop(name, None)


def check(code: int, error: str, says: list[str]) -> None:
    assert code == 2, error
    (line,) = error.splitlines()
    assert line.startswith("nni-fairdarts: error: ")
    assert "Traceback" not in line
    assert len(line) < 2200
    rest = line
    for words in says:
        assert words in rest, f"{words!r} in {line}"
        rest = rest.partition(words)[2]


@pytest.mark.parametrize("name", TABLE)
def test_refused(name, here, monkeypatch, capfd):
    case = TABLE[name]
    put(here, case.files)
    for variable, value in case.environment.items():
        monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
    before = state(here)
    code = main(shlex.split(case.command))
    monkeypatch.undo()
    check(code, capfd.readouterr().err, case.says)
    assert state(here) == before
    assert not Path(MARK).exists()


def test_through_a_process_of_its_own(here):
    """As a user runs it: the same line, and nothing of what libraries print while they are loaded."""
    for name in ("checkpoint: one with code", "variable: threads in words"):
        case = TABLE[name]
        put(here, case.files)
        before = state(here)
        environment = {"TMPDIR": "/dev/null/gone", **case.environment}
        done = command(sys.executable, "-m", "nni_fairdarts", *shlex.split(case.command), environment=environment)
        check(done.returncode, done.stderr, case.says)
        assert state(here) == before


# -- images -----------------------------------------------------------------------------------------------------------


IMAGES = {
    "a text": ("no image", "cannot identify image file"),
    "nothing": ("", "cannot identify image file"),
    "half": (picture(image=Image.effect_noise((99, 99), 50))[:3000], "truncated"),
    "one bit": (flipped(picture(), 0.62), ""),
    "16 bits": (picture("I;16"), "more than 8 bits a pixel; convert it"),
    "no pixels": (picture()[:33], ""),
    "3.6 billion pixels": (gigantic(), "decompression bomb"),
    "a folder": (None, ""),
    "a link to nowhere": (link("gone"), "No such file"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_broken_image_is_named(name, here):
    content, says = IMAGES[name]
    put(here, classes())
    put(here, {"images/train/dog/05.png": ""})
    (here / "images/train/dog/05.png").unlink()
    put(here, {"images/train/dog/05.png": content})
    train = load("folder", here / "images", image_size=8).train
    if name == "a folder":
        assert len(train) == 23
        return
    with pytest.raises(InputError) as error:
        [image for image, _ in train]
    assert "images/train/dog/05.png" in str(error.value)
    assert says in str(error.value)


def test_odd_images_are_read(here):
    """Whatever PIL reads with 8 bits a channel is an image: by the first frame, in RGB, resized."""
    odd = {
        "CMYK.jpg": picture("CMYK", form="JPEG"),
        "many.tif": picture(form="TIFF", save_all=True, append_images=[Image.new("RGB", (8, 8), 9)]),
        "clear.png": picture("RGBA"),
        "dot.png": picture("1", (1, 1)),
        "grey.png": picture("LA"),
        "tall.png": picture(size=(3, 90)),
        "umlaut ä 名.png": picture(),
    }
    put(here, classes())
    put(here, {f"images/train/cat/{name}": content for name, content in odd.items()})
    train = load("folder", here / "images", image_size=8).train
    assert len(train) == 24 + len(odd)
    assert {(image.dtype, tuple(image.shape)) for image, _ in train} == {(torch.uint8, (3, 8, 8))}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_broken_in_the_middle_of_a_search(workers, here, capfd):
    put(here, classes("no image"))
    assert main([*shlex.split(FOLDER), "--data.workers", str(workers)]) == 2
    check(2, capfd.readouterr().err, ["cannot read the image", "train/dog/05.png", "replace it or remove it"])


@pytest.mark.filterwarnings("ignore:.*keeps nothing that is connected:RuntimeWarning")
def test_a_search_goes_on_when_the_image_is_mended(here):
    put(here, classes())
    flags = {"name": "folder", "root": "images", "image_size": 8, "flip": False, "crop_padding": 0}
    config = changed(RunConfig(), {"device": "cpu", **{f"data.{name}": value for name, value in flags.items()}})
    search = {"batch_size": 4, "epochs": 2, "gap_batches": 0}
    config = changed(config, {f"search.{name}": value for name, value in search.items()})
    config = changed(config, {f"space.{name}": value for name, value in TINY["space"].items()})
    image = here / "images/train/dog/05.png"

    def spoil(record):
        image.write_text("no image")

    with pytest.raises(InputError, match="cannot read the image .*05.png"):
        experiment.search(config, spoil)
    image.write_bytes(picture())
    assert experiment.resume(config.folder)["epochs"] == 2
    history = (config.folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [0, 1]


@pytest.mark.parametrize(
    ("workers", "name", "says"),
    [
        (0, "mine:broken", "cannot read image 5 of mine:broken (train): RuntimeError: the disk is gone; mend it"),
        (1, "mine:widening", "is (1, 8, 9), but the first is (1, 8, 8); --data.image_size resizes and crops them"),
    ],
)
def test_a_users_images_that_are_broken_in_the_middle_of_a_search(workers, name, says, here, capfd):
    assert main([*shlex.split(SEARCH), "--data.name", name, "--data.workers", str(workers)]) == 2
    check(2, capfd.readouterr().err, [says])


# -- NNI's parameters -------------------------------------------------------------------------------------------------


class Channel(TrialCommandChannel):
    """Hands out ``parameters``, as NNI's manager would."""

    def __init__(self, parameters):
        self.parameters = parameters

    def receive_parameter(self):
        return None if self.parameters is None else {"parameter_id": 0, "parameters": self.parameters}

    def send_metric(self, *metric):
        raise AssertionError("nothing is to be reported")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (None, ["NNI's manager has no parameters"]),
        ("seed", ["parameters from NNI's manager must be names and values", "'seed'"]),
        ([1], ["parameters from NNI's manager must be names and values", "[1]"]),
        ({"sead": 1}, ["cannot vary 'sead'", "did you mean seed"]),
        ({"search": {"epochs": 1}}, ["cannot vary 'search'", "known: seed"]),
        ({"name": "x"}, ["cannot vary 'name'"]),
        ({"epochs": float("nan")}, ["search.epochs", "whole number", "nan"]),
        ({"epochs": 1e300}, ["search.epochs", "at most 1000000000"]),
        ({"epochs": None}, ["search.epochs must be given, got null"]),
        ({"epochs": [[[[1]]]]}, ["search.epochs", "whole number", "[[[[1]]]]"]),
        ({"learning_rate": float("inf")}, ["search.learning_rate", "finite", "inf"]),
        ({"strategy": {"_name": {"_name": ["darts"]}}}, ["search.strategy", "darts"]),
        ({"space.arguments": 3}, ["space.arguments", "3"]),
        ({"": 1}, ["cannot vary ''"]),
    ],
)
def test_parameters_from_nni(parameters, says, here, monkeypatch, capfd):
    (here / "output").mkdir()
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(here / "output"))
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "T")
    monkeypatch.setattr("nni.runtime.trial_command_channel._channel", Channel(parameters))
    before = state(here)
    check(main(["trial", "--config", "tiny.yaml"]), capfd.readouterr().err, says)
    assert state(here) == before


@pytest.mark.parametrize("name", ["trial.json", "reported.json"])
@pytest.mark.parametrize("content", ["", "{}", "[1]", b"\xff", '{"parameters": [1], "parameter_id": 0}'])
def test_a_trials_own_files_that_are_damaged(name, content, here, monkeypatch, capfd):
    put(here, {f"output/{name}": content})
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(here / "output"))
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "T")
    monkeypatch.setattr("nni.runtime.trial_command_channel._channel", Channel({"seed": 1}))
    before = state(here)
    check(main(["trial", "--config", "tiny.yaml"]), capfd.readouterr().err, [f"output/{name}"])
    assert state(here) == before


PROFILES = ("null", "[]", '{"experimentName": [1]}', "[" * 100_000)
FINALS = [
    '{"default": NaN}', "null", '{"default": {"a": 1}}', "1e999", b"\xff", "[" * 100_000,
    {"strategy": [1], "seed": {}, "default": "x", "genotype": 7, "hyperparameters": 3},
    {"strategy": "a", "default": 10**400, "seconds": -1, "parameters": [], "hyperparameters": "[1]"},
]  # fmt: skip


@pytest.mark.parametrize(("profile", "final"), [*((p, "1") for p in PROFILES), *(("{}", final) for final in FINALS)])
def test_results_of_trials_that_reported_nonsense(profile, final, here, capfd):
    """It is shown, or left out: one trial's nonsense does not hide the others."""
    content = json.dumps(final) if isinstance(final, dict) else final
    put(here, {"abc/db/nni.sqlite": database(profile, ("0", content))})
    assert main(["results", "./abc"]) == 0, capfd.readouterr().err
    assert "1 succeeded" in capfd.readouterr().out
    assert len(json.loads((here / "abc/results.json").read_text())["trials"]) == 1


# -- what is said, and how --------------------------------------------------------------------------------------------


def test_a_traceback_is_shown_where_it_is_asked_for(here, monkeypatch, capfd):
    monkeypatch.setenv("NNI_FAIRDARTS_DEBUG", "1")
    assert main([*shlex.split(SEARCH), "--data.name", "mine:raising"]) == 2
    error = capfd.readouterr().err
    assert 'mine.py", line' in error
    assert "in raising" in error
    assert error.splitlines()[-1].startswith("nni-fairdarts: error: the data function 'mine:raising' raised KeyError")


def test_what_nobody_has_foreseen_is_kept(here, monkeypatch, capfd):
    """A bug: one line, exit code 1, and the traceback in a file."""
    put(here, {"bug.py": "class Bug(dict):\n    def __bool__(self): raise LookupError('six feet\\nunder')\n"
                        "from nni_fairdarts import folder\nfolder.create = lambda *_: bool(Bug())\n"
                        "from mine import good\n"})  # fmt: skip
    monkeypatch.setattr(folder, "create", folder.create)
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    monkeypatch.setenv("TMPDIR", str(here / "gone"))
    assert main([*shlex.split(SEARCH), "--data.name", "bug:good"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nni-fairdarts: error: LookupError: six feet under (")
    assert "This is a bug in nni-fairdarts, or in code of yours that it ran" in line
    kept = Path(re.search(r"its traceback is in (\S+), and NNI_FAIRDARTS_DEBUG=1 shows it", line).group(1))
    assert "in __bool__" in kept.read_text()
    sys.modules.pop("bug")


def test_too_little_memory_is_no_bug(capfd):
    assert unexpected(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")) == 1
    assert "error: not enough memory: DefaultCPU" in capfd.readouterr().err
    assert unexpected(MemoryError()) == 1
    assert "make batch_size, width, num_cells or image_size smaller" in capfd.readouterr().err


def reraised(error):
    """``error`` as torch hands it on from a loader's worker process."""
    try:
        try:
            raise OSError("first")
        except OSError as cause:
            raise error from cause
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as found:
        wrapped.reraise()
    return found.value


def test_an_error_of_a_worker_process_speaks_for_itself(monkeypatch, tmp_path, capfd):
    error = reraised(InputError("the image a.png is broken;\nremove it"))
    assert str(error).rstrip() == "the image a.png is broken;\nremove it"
    assert "in reraised" in error.__notes__[0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert unexpected(reraised(LookupError("no way"))) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nni-fairdarts: error: LookupError: no way (")
    assert "in reraised" in next(tmp_path.iterdir()).read_text()


def test_names_in_any_script(here):
    """Unusual, but right."""
    config = changed(RunConfig(), {"name": "naïve Suche 名前", "runs": "läufe"})
    (here / "good.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(here / "good.yaml") == config
    assert folder.create(config.folder).is_dir()
