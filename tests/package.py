"""Helpers that find and parse the modules of the package, for tests of its source code."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "cnn2gnn_jax"


def modules() -> dict[str, pathlib.Path]:
    """Returns the file of each module by its name in the package, such as `training.fit`.

    The name of a folder stands for its `__init__.py`, and '' stands for that of the package.
    """
    files = {}
    # `configs` is listed too, since it is a symbolic link, and `rglob` does not follow links.
    for path in sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").rglob("*.py")}):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def parsed() -> dict[str, ast.Module]:
    """Returns the syntax tree of each module by its name."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
