"""A module imports from its own room and from those before it in the list of docs/architecture.md, never in a circle.

Every import counts, also one inside a function or for type checkers only.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import knowedit

HOUSE = Path(knowedit.__file__).parent
SIDE_BY_SIDE, LINES = 12, 360  # modules in a folder, lines in a module


def documented() -> list[str]:
    """The rooms in the order of the page, those that may import one another in one string."""
    page = (HOUSE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    listed = re.search(r"<!-- rooms -->\n```\n(.*?)```", page, re.S).group(1)
    lines = [line for line in listed.splitlines() if not line.startswith(" ")]
    return [room.replace(" +", "") for line in lines for room in re.split(r"  +", line)]


def faults(folder: Path, rooms: list[str]) -> list[str]:
    """What is wrong in the package in `folder`: one line each, empty where nothing is."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    module = {path: _module(path, folder) for path in sources}
    graph = {module[p]: _imports(text, module[p], p.stem == "__init__", module.values()) for p, text in sources.items()}
    level = {name: i for i, line in enumerate(rooms) for name in line.split()}
    room = {module[path]: _room(path, folder) for path in sources}
    found = [f"{name} is in room {room[name]!r}, which has no place" for name in graph if room[name] not in level]
    if not found:
        found += [
            f"{name} imports upwards from {other}"
            for name, others in graph.items()
            for other in sorted(others)
            if level[room[other]] > level[room[name]] and not _within(other, name, sources, module)
        ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a circle: " + " → ".join(reversed(error.args[1])))
    for parent in sorted({path.parent for path in sources}):
        beside = [path for path in sources if path.parent == parent and not path.stem.startswith("__")]
        if len(beside) > SIDE_BY_SIDE:
            found.append(f"{parent.relative_to(folder.parent)} has {len(beside)} modules side by side")
    for path, text in sources.items():
        if (lines := text.count("\n")) > LINES:
            found.append(f"{path.relative_to(folder.parent)} has {lines} lines")
    return found


def _module(path: Path, folder: Path) -> str:
    return ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")


def _room(path: Path, folder: Path) -> str:
    """A folder within the package, a module at its top, or the package itself."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1]) or (folder.name if parts[-1] == "__init__" else parts[-1])


def _within(other: str, name: str, sources: dict, module: dict) -> bool:
    """Whether `name` is a package that offers what is in it, such as `edit` a name from `edit.methods`."""
    packages = {module[path] for path in sources if path.stem == "__init__"}
    return name in packages and other.startswith(name + ".")


def _imports(source: str, name: str, is_package: bool, modules) -> set[str]:
    """The modules that `source` imports, wherever it does. The version in the package's top counts as no import."""
    found, modules = set(), set(modules)
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                found.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base)
    return (found & modules) - {name}


def test_every_room_stands_on_those_below_it():
    assert faults(HOUSE, documented()) == []


BELOW, ABOVE = "toy.low.base", "toy.high.user"
GOOD = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .high.user import use\n",
    "low/__init__.py": "",
    "low/base.py": "",
    "low/other.py": "from .base import x\n",
    "high/__init__.py": "from .user import use\n",
    "high/user.py": "from ..low import base\nimport toy.low.other\n",
}
BAD = {
    "upwards": ({"low/base.py": "from ..high.user import use\n"}, f"{BELOW} imports upwards from {ABOVE}"),
    "late": ({"low/base.py": "def f():\n    from ..high import user\n"}, f"{BELOW} imports upwards from {ABOVE}"),
    "absolute": ({"low/base.py": "import toy.high.user\n"}, f"{BELOW} imports upwards from {ABOVE}"),
    "typing": (
        {"low/base.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..high.user import use\n"},
        f"{BELOW} imports upwards from {ABOVE}",
    ),
    "front door": ({"low/base.py": "from .. import use\n"}, f"{BELOW} imports upwards from toy"),
    "circle": ({"low/base.py": "from .other import y\n"}, "a circle: "),
    "no place": ({"attic.py": ""}, "toy.attic is in room 'attic', which has no place"),
    "crowd": ({f"low/m{i}.py": "" for i in range(11)}, "toy/low has 13 modules side by side"),
    "long": ({"low/base.py": "x = 1\n" * 361}, "toy/low/base.py has 361 lines"),
}


def toy(folder: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = folder / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return faults(folder / "toy", ["low", "high", "toy"])


def test_a_house_in_order_has_no_fault(tmp_path):
    assert toy(tmp_path, GOOD) == []


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_found(fault, tmp_path):
    change, wanted = BAD[fault]
    assert [line for line in toy(tmp_path, GOOD | change) if line.startswith(wanted)]
