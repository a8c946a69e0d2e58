"""The wheel: it has all of the package and nothing else, and works where the source tree is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = """
name: tiny
device: cpu
threads: 1
data: {name: digits, flip: false, crop_padding: 1, search_images_per_class: 12}
space: {width: 2, num_cells: 3, operations: [sep_conv_3x3, skip_connect]}
search: {epochs: 1, batch_size: 60, gap_batches: 0}
"""


def done(command, **options) -> str:
    """What the command prints, to either stream; the test fails where it does."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ran = subprocess.run([str(part) for part in command], timeout=300, **pipes, **options)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, of a copy: building leaves folders behind, and would take from those of an earlier building."""
    source, out = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns(".*", "build", "dist", "runs", "lightning_logs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done([*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source])
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The environment of a process that finds the wheel's package, and the folder it is in."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done([*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel])
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore"}, site


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel):
    package = ROOT / "nni_fairdarts"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
        assert archive.read("nni_fairdarts/manager/preload.js") == (package / "manager" / "preload.js").read_bytes()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert wheel.name == f"nni_fairdarts-{described['Version']}-py3-none-any.whl"
    assert described.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_a_search_runs_from_the_wheel(installed, tmp_path):
    environment, site = installed
    places = (
        "import nni_fairdarts as n, nni_fairdarts.genotype as g; print(n.__file__, g.published('FairDARTS_a').style)"
    )
    printed = done([sys.executable, "-c", places], env=environment, cwd=tmp_path)
    assert printed.split() == [str(site / "nni_fairdarts" / "__init__.py"), "fairdarts"]
    command = site / "bin" / "nni-fairdarts"
    listed = done([command, "--help"], env=environment, cwd=tmp_path)
    assert all(name in listed for name in ("search", "derive", "retrain", "launch"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    printed = done([command, "search", "--config", "tiny.yaml"], env=environment, cwd=tmp_path)
    assert "supernet accuracy" in printed
    assert (tmp_path / "runs" / "tiny" / "genotype.json").is_file()
