"""The wheel holds what the package needs, and type checkers see real types in it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import knowedit

ROOT = Path(__file__).resolve().parent.parent
USER = """\
import knowedit
from knowedit import rome

reveal_type(knowedit.load("x"))
reveal_type(knowedit.locate_fact(knowedit.load(), knowedit.find_fact("x")))
reveal_type(rome(knowedit.load(), knowedit.Fact("{} is", "a", "b")))
reveal_type(knowedit.memory.scan(knowedit.load()))
reveal_type(knowedit.trace.patch)
reveal_type(knowedit.bench.load_source("x"))
knowedit.lod
knowedit.memory.kard
"""
TYPES = [
    "knowedit.models.adapter.Model",
    "knowedit.locate.neurons.NeuronSet",
    "knowedit.edit.edit.Edit",
    "knowedit.memory.corpus_scan.ActivationScan",
    "def (model: knowedit.models.adapter.Model, clean: ",
    "knowedit.sources.loading.Source",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's contents in a folder, built from a copy of what is tracked."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "knowedit", copy / "knowedit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", build, out], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as file:
        file.extractall(out)
    return out


def test_the_wheel_holds_all_files_of_the_package(wheel):
    def files(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    left_out = files(ROOT / "knowedit") - files(wheel / "knowedit")
    assert {name for name in left_out if "__pycache__" not in name} == set()
    assert "py.typed" in files(wheel / "knowedit")


def test_the_wheel_works_where_there_is_no_checkout(wheel, tmp_path):
    code = "import knowedit; print(knowedit.__file__, len(knowedit.builtin_facts()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": wheel},
    )
    assert done.stdout.split() == [str(wheel / "knowedit/__init__.py"), str(len(knowedit.builtin_facts()))], done.stderr


@pytest.fixture(scope="module")
def checked(wheel):
    """What mypy says of the package, with the settings of this repository, and of a user's file beside it."""
    (wheel / "user.py").write_text(USER)
    command = ["mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", os.devnull, "knowedit", "user.py"]
    return subprocess.run([sys.executable, "-m", *command], cwd=wheel, capture_output=True, text=True).stdout


def test_a_user_sees_real_types(checked):
    seen = re.findall(r"^user\.py:\d+: note: Revealed type is \"(.*)\"$", checked, re.M)
    assert len(seen) == len(TYPES), checked
    assert [real for real, wanted in zip(seen, TYPES, strict=True) if not real.startswith(wanted)] == []


def test_a_name_that_is_not_there_is_an_error(checked):
    errors = re.findall(r"^user\.py:(\d+): error: Module has no attribute", checked, re.M)
    lines = USER.splitlines()
    assert [lines[int(line) - 1] for line in errors] == ["knowedit.lod", "knowedit.memory.kard"]


def test_the_package_itself_has_no_type_errors(checked):
    assert re.findall(r"^knowedit/.*error.*$", checked, re.M) == []
