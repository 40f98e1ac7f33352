"""Imports run downwards between the rooms of the package, and no two files import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "adarec_fast"
PAGE = PACKAGE / "docs" / "architecture.md"

# From the top to the ground; a file imports from its own line and from those below.
LAYERS = (
    "__init__, cli",
    "adapters, export, plotting, serving",
    "experiments",
    "training",
    "ranking",
    "models",
    "distributed",
    "ops, packed, reference, kernels",
    "data",
    "clustering, config, defaults, documents, files, histories, precision, ragged, rng, version",
)
_PLACE = {room: place for place, line in enumerate(LAYERS) for room in line.split(", ")}


def modules(package: Path) -> dict[str, Path]:
    """Files by dotted name below the package; ``data`` is ``data/__init__.py``, ``""`` the root."""
    found = {}
    # Symbolic links are rooms too, and rglob does not follow them.
    for folder in (package, package / "kernels"):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(package).with_suffix("").parts
            if parts[0] not in ("csrc", "docs"):  # C++, and programs for readers
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, name: str, known: dict[str, Path], package: str) -> Iterator[str]:
    """Modules of the package that a file imports anywhere, for its types and locally too."""
    inside = name.split(".") if name else []
    if path.name != "__init__.py":
        inside = inside[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    yield alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = inside[: len(inside) - node.level + 1]
                target = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            elif (node.module or "").split(".")[0] == package:
                target = (node.module or "").partition(".")[2]
            else:
                continue
            for alias in node.names:
                whole = f"{target}.{alias.name}".lstrip(".")
                yield whole if whole in known else target


def arrows(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {
        name: {to for to in imported(path, name, known, package.name) if to != name}
        for name, path in known.items()
    }


def room(name: str) -> str:
    return name.split(".")[0] or "__init__"


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a lower line by a file of a higher number, as ``from -> to``."""
    return sorted(
        f"{name or '__init__'} -> {to or '__init__'}"
        for name, targets in graph.items()
        for to in targets
        if _PLACE[room(to)] < _PLACE[room(name)]
    )


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Files that reach themselves, each circle once, by its shortest way around."""
    found = {}
    for start in sorted(graph):
        ways, seen = [[start]], {start}
        while ways:
            way = ways.pop(0)
            for to in sorted(graph.get(way[-1], ())):
                if to == start:
                    found.setdefault(frozenset(way), " -> ".join([*way, to]))
                    ways = []
                    break
                if to not in seen:
                    seen.add(to)
                    ways.append([*way, to])
    return sorted(found.values())


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return arrows(PACKAGE)


def test_every_room_has_a_layer(graph: dict[str, set[str]]) -> None:
    assert {room(name) for name in graph} == set(_PLACE)


def test_no_arrow_runs_upwards(graph: dict[str, set[str]]) -> None:
    assert not upward(graph)


def test_no_circle(graph: dict[str, set[str]]) -> None:
    assert not circles(graph)


def test_the_page_has_the_same_lines() -> None:
    text = PAGE.read_text(encoding="utf-8")
    block = text.split("```text\n")[1].split("```")[0]
    assert tuple(block.splitlines()) == LAYERS


def test_local_imports_and_those_for_types_count(tmp_path: Path) -> None:
    package = tmp_path / "adarec_fast"
    for name, text in {
        "__init__.py": "",
        "config.py": "def f():\n    from .data import load\n",
        "data/__init__.py": "from .load import load\n",
        "data/load.py": "if TYPE_CHECKING:\n    from .text import split\n",
        "data/text.py": "import adarec_fast.data.load\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    found = arrows(package)
    assert upward(found) == ["config -> data.load"]
    assert circles(found) == ["data.load -> data.text -> data.load"]
