"""The package itself: what `import knowedit` costs, what it offers, and what ships."""

import importlib
import inspect
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import knowedit

ROOT = Path(knowedit.__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "numpy", "scipy", "captum", "datasets", "accelerate", "rich", "typer")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    code = f"import sys, knowedit; print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == "[]"


def test_facts_need_no_torch():
    code = "import sys, knowedit as k; k.Fact('{} is', 'a', 'b'); k.builtin_facts(); print('torch' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize("name", knowedit.__all__)
def test_public_names(name):
    assert getattr(knowedit, name) is getattr(knowedit, name)
    assert name in dir(knowedit)
    assert not inspect.ismodule(getattr(knowedit, name)), "a module of that name hides it"


@pytest.mark.parametrize("name", sorted(knowedit._MODULE_OF))
def test_public_names_are_what_their_module_defines(name):
    home = importlib.import_module(knowedit._MODULE_OF[name])
    inner = getattr(home, name)
    if inspect.isclass(inner) or inspect.isfunction(inner):
        assert inner.__doc__, f"{name} has no docstring"


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'knowedit' has no attribute 'lod'"):
        knowedit.lod  # noqa: B018


def test_one_version():
    assert knowedit.__version__ == "0.1.0"
    assert setup()["metadata"]["version"] == "attr: knowedit.__version__"


def setup() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def test_data_ships():
    patterns = setup()["options.package_data"]["knowedit"].split(", ")
    assert {p for pattern in patterns for p in (ROOT / "knowedit").glob(pattern)} == {
        *(ROOT / "knowedit" / "data").iterdir(),
        *(ROOT / "knowedit" / "report" / "page" / "templates").iterdir(),
        ROOT / "knowedit" / "py.typed",
    }
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_constraints_pin_what_is_installed_by_name():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = setup()["options"]["install_requires"] + setup()["options.extras_require"]["test"]
    names = {line.split(">=")[0].split("==")[0] for line in asked.splitlines() if line and line[0] != "#"}
    assert names <= pinned


def test_every_package_is_found():
    """A folder without __init__.py would be left out of the wheel."""
    folders = {path.parent for path in (ROOT / "knowedit").rglob("*.py")}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert b'build-backend = "setuptools.build_meta"' in file.read()
