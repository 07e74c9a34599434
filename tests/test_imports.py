"""Imports go one way: down the levels of the house (docs/architecture.md), and in no circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "normlab"

# From the top to the ground. What stands in one line does not import each other.
LEVELS = (
    {"__main__"},
    {"cli", "api"},
    {"exchange", "doctor"},
    {"bench"},
    {"sweeps", "site"},
    {"report", "launch"},
    {"figures"},
    {"engine"},
    {"processes"},
    {"runs", "datasets"},
    {"config", "trackers"},
    {"tasks"},
    {"data", "models", "dynamics", "replicas"},
    {"norm"},
    {"words"},
    {"reading"},
    {"schema", "writing", "progress", "seeding", "versions"},
    {"console", "values"},
    {"errors"},
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imported(name: str) -> set[str]:
    """The modules of normlab that one imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{name}: imports here name the whole place"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {other for other in inside if other in MODULES} or {node.module}
    return {other for other in found if other in MODULES and other not in ("normlab", name)}


def test_every_room_has_its_level():
    assert {room(name) for name in MODULES} - {"", "__init__"} == set(LEVEL)


def test_the_page_draws_the_same_house():
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    drawn = page.partition("fails on one that does not.\n\n")[2].partition("\n\n")[0]
    lines = [re.split(r" {3,}", line.strip())[:-1] or [line.strip()] for line in drawn.splitlines()]
    rooms = [{name for words in line for name in words.split()} & set(LEVEL) for line in lines]
    assert rooms == [level for level in LEVELS if level != {"__main__"}]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name):
    level = LEVEL.get(room(name), -1)  # the package's own front door is above all
    assert not {other for other in imported(name) if room(other) != room(name) and LEVEL[room(other)] <= level}


def test_no_circles():
    """Within a room too. A package's own __init__ is a front door, which its modules do not use."""
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " > ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(imported(name)):
                walk(other, (*way, name))
            done.add(name)

    for name in sorted(MODULES):
        walk(name, ())


def test_the_reader_sees_imports(tmp_path, monkeypatch):
    """Also those inside of functions, and of names that are modules."""
    file = tmp_path / "x.py"
    file.write_text("from normlab import schema\ndef f():\n    from normlab.runs.folder import RunFolder\n")
    monkeypatch.setitem(MODULES, "normlab.x", file)
    assert imported("normlab.x") == {"normlab.schema", "normlab.runs.folder"}
