"""The documentation: it builds without a warning, has every public name, and the code in the guides runs.

Marks for these tests stand before a block, as comments that no reader sees: ``file: NAME`` saves the block in place of
running it, ``in tests: A -> B; C -> D`` makes it smaller, ``not run: REASON`` leaves it out.
"""

import importlib
import inspect
import io
import re
import shlex
import sys
import warnings
from pathlib import Path

import nni.nas.strategy
import pytest
import yaml
from sphinx.application import Sphinx

import nni_fairdarts
from nni_fairdarts.cli import main
from nni_fairdarts.config import SECTIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = ("quick-start", "from-darts", "own-spaces", "experiments", "resuming", "performance", "figures")
PUBLIC = (
    "alpha_gradients", "analysis", "checkpoints", "config", "data", "datasets", "discretize", "early", "edges",
    "errors", "experiment", "exports", "family", "freezing", "gap", "gates", "genotype", "graphs", "history",
    "inheritance", "manager", "network", "nni_strategies", "penalty", "plots", "published", "recorded",
    "report.pages", "spaces", "stopping", "strategy", "strength", "supernet.fused", "supernet.moving",
    "tensorboard", "trained.evaluating", "trained.exporting", "trained.loading",
)  # fmt: skip
BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(python|sh|yaml)\n(.*?)^```$", re.M | re.S)
MARK = re.compile(r"<!-- (file|in tests|not run): (\S.*) -->")


# -- the code in the guides ----------------------------------------------------------------------------------------


def blocks(page: str) -> list[tuple[dict, str, str]]:
    """(marks, language, text) of every block of a guide that is code or a file."""
    text = (DOCS / f"{page}.md").read_text()
    found = [(dict(MARK.findall(marks)), language, block) for marks, language, block in BLOCK.findall(text)]
    assert sum(len(marks) for marks, _, _ in found) == text.count("<!--"), f"{page}: a mark that is none"
    return found


def run(marks: dict, language: str, text: str, names: dict) -> None:
    for change in filter(None, marks.get("in tests", "").split("; ")):
        before, after = change.split(" -> ")
        assert before in text, f"the block lacks {before!r}"
        text = text.replace(before, after)
    if "file" in marks:
        Path(marks["file"]).write_text(text)
    elif language == "python":
        exec(compile(text, "a block of a guide", "exec"), names)
    elif language == "sh":
        for line in text.splitlines():
            assert exit_code(line) == 0, line
    if language == "yaml":
        assert isinstance(yaml.safe_load(text), dict)


def exit_code(line: str) -> int:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "nni-fairdarts", f"mark what cannot run here: {line}"
    try:
        return main(arguments)
    except SystemExit as left:  # of --print_config
        return left.code


@pytest.mark.parametrize("page", GUIDES)
def test_the_code_of_a_guide_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(nni.nas.strategy, "FairDARTS", None, raising=False)  # what ``register`` puts there goes again
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {"__name__": "guide"}
    for marks, language, text in blocks(page):
        if "not run" not in marks:
            run(marks, language, text, names)
    sys.modules.pop("my_space", None)


def test_few_blocks_are_left_out():
    every = [marks for page in GUIDES for marks, _, _ in blocks(page)]
    left_out = [marks["not run"] for marks in every if "not run" in marks]
    assert len(left_out) <= 8
    assert len(left_out) <= len(every) / 4
    assert all(len(reason) > 15 for reason in left_out)


@pytest.mark.parametrize("page", GUIDES)
def test_the_files_and_settings_that_a_guide_names_are_there(page):
    text = (DOCS / f"{page}.md").read_text()
    for path in re.findall(r"\b((?:examples|benchmarks|tests)/[\w./-]*\w/?)", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for section, name in re.findall(rf"`(?:--)?({'|'.join(SECTIONS)})\.(\w+)", text):
        assert name in {**SECTIONS[section].__dataclass_fields__}, f"{page} names {section}.{name}"


# -- the reference -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the reference, and what Sphinx warned of; without pages, which ``make docs`` writes."""
    folder, warned = tmp_path_factory.mktemp("docs"), io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sphinx's to its extensions, about its next releases
        # To preserve how defaults are written Sphinx changes the functions, which other tests call.
        kept = {"autodoc_preserve_defaults": False}
        app = Sphinx(DOCS, DOCS, folder / "out", folder / "trees", "dummy", kept, status=None, warning=warned)
        app.build()
    return set(app.env.get_domain("py").objects), warned.getvalue()


def public(module) -> list[str]:
    """Names of a module's ``__all__`` or, where it has none, of its own classes and functions."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    own = [name for name in own if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


def test_the_documentation_builds_without_a_warning(built):
    assert built[1] == ""


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_and_an_entry(built, name):
    module = importlib.import_module(f"nni_fairdarts.{name}")
    assert module.__doc__
    names = public(module)
    assert names
    for one in names:
        value = getattr(module, one)
        assert f"nni_fairdarts.{name}.{one}" in built[0], f"the reference lacks {name}.{one}"
        if callable(value):
            assert value.__doc__, f"{name}.{one} has no docstring"
            assert not value.__doc__.startswith(f"{one}("), f"{name}.{one} has no docstring but dataclass's"


def test_the_names_of_the_package_itself_have_an_entry_and_a_link(built):
    listed = (DOCS / "api" / "index.md").read_text()
    for name in nni_fairdarts.__all__:
        value = getattr(nni_fairdarts, name)
        place = f"{value.__module__}.{value.__qualname__}"
        assert place in built[0], f"the reference lacks {place}"
        assert f"`{name} <{place}>`" in listed, f"docs/api/index.md lacks {name}"
