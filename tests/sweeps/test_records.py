"""Tests that the records of a sweep import neither its runner nor its report, and are all that these two share."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / "cnn2gnn_jax"


def imports(path):
    """Yields what a module imports, by name. `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_sweeps_and_report_share_only_the_records():
    sweeps, report = (
        {name for path in (PACKAGE / room).glob("*.py") for name in imports(path)} for room in ("sweeps", "report")
    )
    assert not [name for name in sweeps if "cnn2gnn_jax.report" in name]
    assert [name for name in report if "cnn2gnn_jax.sweeps" in name] == ["cnn2gnn_jax.sweeps.records"]
    below = {name for name in imports(PACKAGE / "sweeps" / "records.py") if name.startswith("cnn2gnn_jax")}
    assert not [name for name in below if "pipeline" in name or "report" in name or "sweeps" in name]
