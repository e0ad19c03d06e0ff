"""Imports point one way, and TensorFlow stays out of what must start quickly."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "kd_cli"
# From the leaves upwards: a module imports only from its own row and from lower ones.
ROWS = [
    {"errors", "manual", "splits", "progress", "checkpoint", "tracking", "evidence", "quality"},
    {"losses", "optimizers", "fused", "records", "figures", "pages"},
    {"schema", "augment", "arguments"},
    {"config", "device", "metrics", "decoded", "logits", "schedules", "sweep"},
    {"models", "bit", "saved_model", "folders", "sources", "data"},
    {"identity", "batches", "views"},
    {"engine", "cost", "target"},
    {"summary", "teacher", "trainer", "ownership", "groups"},
    {"answers", "assembly", "drawings", "gate", "tables"},
    {"results"},
    {"rounds"},
    {"run", "cache", "report", "evaluate"},
    {"compare", "job", "explain"},
    {"joint"},
    {"cli"},
    {"__main__"},
]
RANK = {name: number for number, row in enumerate(ROWS) for name in row} | {"__init__": -1}
# Modules that are loaded before a mistake in the configuration is told.
HEAVY = {"losses", "optimizers", "fused", "models", "augment", "batches", "views", "engine"}
HEAVY |= {"bit", "saved_model", "teacher", "answers", "trainer", "gate", "cost"}
LIGHT = set(RANK) - HEAVY


def imports(path: Path, lazy: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "kd_cli":
                names |= {f"kd_cli.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_module_has_a_row():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(RANK)


def test_no_two_modules_import_each_other():
    edges = {path.stem: imports(path, lazy=True) for path in PACKAGE.glob("*.py")}
    for name, targets in edges.items():
        for other in RANK:
            if f"kd_cli.{other}" in targets:
                assert f"kd_cli.{name}" not in edges[other], f"{name} and {other}"


def test_imports_point_downwards():
    for path in PACKAGE.glob("*.py"):
        for name in imports(path, lazy=True):
            target = name.removeprefix("kd_cli.")
            if name.startswith("kd_cli.") and target in RANK:
                above = RANK[target] > RANK[path.stem]
                assert not above, f"{path.stem} imports {target}, which stands above it"


def test_light_modules_do_not_import_tensorflow_at_the_top():
    for name in LIGHT:
        heavy = {"tensorflow", "keras", *(f"kd_cli.{module}" for module in HEAVY)}
        assert not imports(PACKAGE / f"{name}.py", lazy=False) & heavy, name


def test_files_stay_short():
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name
