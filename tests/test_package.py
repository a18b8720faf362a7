"""The package itself: what `import knowedit` costs, what it offers, and what ships."""

import inspect
import pkgutil
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType

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


NAMESPACES = ("bench", "edit", "flow", "lens", "locate", "memory", "mlp", "trace")


def public() -> list[tuple[str, ModuleType, str]]:
    """The public names: as a user writes them, the module that offers them, and their last part."""
    spaces = [getattr(knowedit, space) for space in NAMESPACES]
    return [(f"{space.__name__}.{name}", space, name) for space in (knowedit, *spaces) for name in space.__all__]


@pytest.mark.parametrize("path, space, name", public(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_public_name_is_there_documented_and_no_module(path, space, name):
    value = getattr(space, name)
    assert name in dir(space)
    assert inspect.ismodule(value) == (space is knowedit and name in NAMESPACES), "a module of that name hides it"
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__


def test_no_module_takes_the_name_of_what_its_package_offers():
    """An import of the module would replace the function: `knowedit.memory.keys` would mean two things."""
    for space in (knowedit, *(getattr(knowedit, name) for name in NAMESPACES)):
        modules = {module.name for module in pkgutil.iter_modules(getattr(space, "__path__", ()))}
        assert not modules & (set(space.__all__) - set(NAMESPACES)), space.__name__


def test_namespaces_say_in_their_docstring_what_they_offer():
    for name in ("flow", "lens", "memory", "mlp", "trace"):
        space = getattr(knowedit, name)
        modules = {module.name for module in pkgutil.iter_modules(space.__path__)}
        assert {module for module in modules if not re.search(rf"^{module}\b", space.__doc__, re.M)} == set()


def test_a_name_that_is_not_there_is_refused_with_the_nearest_one():
    with pytest.raises(AttributeError, match="module 'knowedit' has no attribute 'lod'.*'load'"):
        knowedit.lod  # noqa: B018
    with pytest.raises(AttributeError, match="module 'knowedit.memory' has no attribute 'kard'.*'card'"):
        knowedit.memory.kard  # noqa: B018


def test_one_version():
    assert knowedit.__version__ == "0.1.0"
    assert setup()["metadata"]["version"] == "attr: knowedit.version.__version__"
    assert f"\nversion: {knowedit.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def setup() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def test_data_ships():
    patterns = setup()["options.package_data"]["knowedit"].split(", ")
    assert {p for pattern in patterns for p in (ROOT / "knowedit").glob(pattern)} == {
        *(ROOT / "knowedit" / "data").iterdir(),
        *(ROOT / "knowedit" / "report" / "page" / "templates").iterdir(),
        *(ROOT / "knowedit" / "ui" / "templates").iterdir(),
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
