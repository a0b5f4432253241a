"""The modules of the package, parsed."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "cnn2gnn_jax"


def modules() -> dict[str, pathlib.Path]:
    """The file of each module by its name in the package, as `training.fit`; `data` is data/__init__.py, '' the top."""
    files = {}
    # `rglob` does not follow the link to the configs.
    for path in sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").rglob("*.py")}):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def parsed() -> dict[str, ast.Module]:
    """The syntax tree of each module."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
