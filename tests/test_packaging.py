"""The package's own files: metadata, entry point, package data, and constraints that fit the declared ranges."""

import configparser
import json
from importlib import metadata, resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirement_lines(text):
    lines = (line.strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def declared(config):
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [requirement for text in lists for requirement in requirement_lines(text)]


def pinned(python):
    """The version that constraints.txt gives each package on Linux with this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions = {}
    for requirement in requirement_lines((ROOT / "constraints.txt").read_text(encoding="utf-8")):
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        assert name not in versions, f"{name} is there twice for Python {python}"
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not an exact version"
        versions[name] = Version(specifier.version)
    return versions


def test_version_is_the_installed_one(config):
    assert config["metadata"]["version"] == metadata.version("nni-fairdarts")


def test_console_script(config):
    (script,) = [
        entry
        for entry in metadata.distribution("nni-fairdarts").entry_points
        if entry.group == "console_scripts" and entry.name == "nni-fairdarts"
    ]
    assert script.value == "nni_fairdarts.cli:main"
    assert callable(script.load())


def test_package_data_is_readable():
    text = resources.files("nni_fairdarts").joinpath("published.json").read_text(encoding="utf-8")
    assert json.loads(text)


def test_every_file_of_the_package_is_packed(config):
    patterns = {name: text.replace(",", " ").split() for name, text in config["options.package_data"].items()}
    package = ROOT / "nni_fairdarts"
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = ".".join(path.relative_to(ROOT).parent.parts)
            assert any(path.match(pattern) for pattern in patterns.get(name, ())), f"package_data lacks {path}"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_satisfy_the_declared_ranges(config, python):
    versions = pinned(python)
    for requirement in declared(config):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"constraints.txt lacks {name} for Python {python}"
        assert requirement.specifier.contains(versions[name]), f"{name} {versions[name]} is outside {requirement}"


@pytest.mark.parametrize("python", PYTHONS)
def test_declared_pythons(config, python):
    assert f"Programming Language :: Python :: {python}" in config["metadata"]["classifiers"]
    assert Version(f"{python}.0") in Requirement(f"python{config['options']['python_requires']}").specifier
