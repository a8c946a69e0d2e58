"""Who may import whom: a module imports only from lower layers. README's table says what each owns."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nni_fairdarts"
LAYERS = {
    "errors": 0,
    "failures": 0,
    "files": 0,
    "variables": 0,
    "launched": 0,
    "metrics": 0,
    "_nni": 0,
    "edges": 1,
    "randomness": 1,
    "stopping": 1,
    "config": 1,
    "distributed": 1,
    "gates": 1,
    "history": 1,
    "kernels": 1,
    "users": 1,
    "early": 1,
    "stages": 1,
    "alpha_gradients": 2,
    "watch": 1,
    "yaml_files": 1,
    "scaling": 1,
    "graphs": 1,
    "checkpoints": 2,
    "genotype": 2,
    "arguments": 2,
    "datasets": 2,
    "guests": 2,
    "training": 2,
    "data": 3,
    "discretize": 3,
    "folder": 3,
    "going_on": 3,
    "spaces": 3,
    "parameters": 3,
    "counts": 4,
    "recorded": 4,
    "recording": 4,
    "supernet": 4,
    "network": 4,
    "penalty": 5,
    "plots": 5,
    "freezing": 5,
    "staged": 5,
    "published": 5,
    "search": 6,
    "inheritance": 6,
    "exports": 7,
    "gap": 7,
    "requirements": 7,
    "building": 8,
    "strength": 8,
    "tensorboard": 8,
    "strategy": 9,
    "analysis": 10,
    "mended": 10,
    "family": 11,
    "nni_strategies": 12,
    "experiment": 13,
    "manager": 13,
    "report": 14,
    "trained": 14,
    "cli": 15,
    "__main__": 16,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules, and of the names from modules, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_lower_layers(path):
    own = room(path)
    if own == "__init__":
        return
    for name in imported(path):
        if name.startswith("nni_fairdarts."):
            other = name.split(".")[1]
            assert other == own or LAYERS[other] < LAYERS[own], f"{own} imports {other}"
        if own != "_nni":
            assert not name.startswith("nni.nas.oneshot"), f"{own} imports {name}; take it through _nni.py"


def test_every_room_has_its_layer_and_its_line_in_the_readme():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms == LAYERS.keys()
    readme = (PACKAGE.parent / "README.md").read_text()
    for name in rooms:
        assert f"`{name}/`" in readme or f"`{name}.py`" in readme, f"README's table lacks {name}"


def test_importing_the_package_loads_neither_torch_nor_nni():
    code = "import sys, nni_fairdarts; print({'torch', 'nni', 'numpy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_public_name_is_there():
    import nni_fairdarts

    for name in nni_fairdarts.__all__:
        assert getattr(nni_fairdarts, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'fairdarts'"):
        _ = nni_fairdarts.fairdarts


@pytest.mark.parametrize("first", ["search", "_nni"])
def test_any_module_may_be_imported_first(first):
    """NNI puts stand-ins in the place of its strategies where its one-shot package is imported first."""
    code = f"import nni_fairdarts.{first} as first; from nni_fairdarts import FairDARTS; print(FairDARTS().arc_betas)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "(0.9, 0.999)\n", done.stderr
