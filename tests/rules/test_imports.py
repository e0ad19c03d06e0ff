"""Imports point one way, without circles, and TensorFlow stays out of what must start quickly."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "kd_cli"
# From the ground upwards: a room imports from itself and from the floors below it.
FLOORS = [
    {"errors", "files", "streams", "terminal", "device"},
    {"config"},
    {"data"},
    {"networks", "runs"},
    {"export"},
    {"distillation", "report"},
    {"training"},
    {"commands"},
    {"plugins"},
    {"cli"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FLOOR["__main__"] = len(FLOORS)  # calls `cli`
# Whole rooms, and modules of others, that must be importable without TensorFlow: a mistake in the
# configuration is told before it is loaded.
WITHOUT_TENSORFLOW = ["errors", "files", "streams", "terminal", "device"]
WITHOUT_TENSORFLOW += ["config", "runs", "report", "cli"]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@functools.cache
def imports(module: str, lazy: bool) -> frozenset[str]:
    """What a module imports, dotted: at its top, or with `lazy` inside its functions as well."""
    tree = ast.parse(MODULES[module].read_text())
    names = set()
    nodes = list(ast.walk(tree)) if lazy else list(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(names)


def edges(lazy: bool) -> dict[str, set[str]]:
    return {module: {n for n in imports(module, lazy) if n in MODULES} for module in MODULES}


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} - {""} == set(FLOOR)


def test_a_room_imports_only_from_the_floors_below_it():
    for module, targets in edges(lazy=True).items():
        for target in targets - {"kd_cli"}:
            here, there = FLOOR.get(room(module), 0), FLOOR[room(target)]
            same = room(target) == room(module) or here == there == 0  # files, no rooms
            assert same or there < here, f"{module} imports {target}, which does not stand below it"


def test_there_is_no_circle():
    graph = {module: targets - {"kd_cli", module} for module, targets in edges(lazy=True).items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def reached(module: str) -> set[str]:
    """All modules that are imported when `module` is: its packages' `__init__` too."""
    graph, seen, waiting = edges(lazy=False), set(), [module]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            parents = [one.rsplit(".", n)[0] for n in range(1, one.count(".") + 1)]
            waiting += [*graph[one], *parents]
    return seen


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_what_starts_quickly_reaches_no_tensorflow(name):
    for module in [m for m in MODULES if room(m) == name]:
        for one in reached(module):
            roots = {target.split(".")[0] for target in imports(one, lazy=False)}
            assert not roots & {"tensorflow", "keras"}, f"{module} reaches {one}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "commands"])
def test_commands_reach_no_tensorflow_before_they_run(module):
    for one in reached(module):
        roots = {target.split(".")[0] for target in imports(one, lazy=False)}
        assert not roots & {"tensorflow", "keras"}, f"{module} reaches {one}"


def test_files_stay_short():
    for path in MODULES.values():
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_the_first_level_stays_small():
    names = [p for p in PACKAGE.iterdir() if p.name not in ("__pycache__", "conf")]
    rooms = [p for p in names if p.is_dir() and any(p.glob("*.py"))]
    assert len(rooms) <= 9 and len([p for p in names if p.is_file()]) <= 8


def test_every_room_says_how_to_add_one_thing():
    for path in PACKAGE.glob("*/__init__.py"):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "To add a" in doc, path
        for file in path.parent.glob("*.py"):
            if file.stem != "__init__":
                assert f"    {file.stem} " in doc or path.parent.name == "commands", file
