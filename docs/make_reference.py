"""Writes docs/reference.md from the docstrings; `make docs` runs it.

python docs/make_reference.py
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
MODULES = (
    *("graph", "gnn", "inference", "losses", "distillers", "networks"),
    *("data", "pipeline", "teacher_logits", "training.model", "serving.trained", "serving.graph_choice"),
    *("serving.pictures", "predict", "serving.bundle", "export"),
)


def _path(module: str) -> pathlib.Path:
    folder = ROOT / "cnn2gnn_jax" / module.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _text(docstring: str) -> list[str]:
    """The first paragraph as it is, the others as they stand in the source."""
    first, _, rest = docstring.partition("\n\n")
    return ["", first] + (["", "```text", rest.strip("\n"), "```"] if rest.strip() else [])


def _entry(node: ast.FunctionDef | ast.ClassDef, owner: str = "") -> list[str]:
    docstring = ast.get_docstring(node)
    if docstring is None or node.name.startswith("_"):
        return []
    name = f"{owner}{node.name}"
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        title = name if is_property else f"{name}({ast.unparse(node.args)})"
        return ["", f"### `{title}{returns}`", *_text(docstring)]
    fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
    lines = ["", f"### `{name}`", *_text(docstring)]
    if fields:
        lines += ["", "```text", *fields, "```"]
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            lines += _entry(item, f"{name}.")
    return lines


def page() -> str:
    """The reference page."""
    lines = ["# Reference", "", "Made of the docstrings by `make docs`; the examples in them are run by the tests.", ""]
    lines += [f"- [{module}](#{module.replace('.', '')})" for module in MODULES]
    for module in MODULES:
        tree = ast.parse(_path(module).read_text(encoding="utf-8"))
        lines += ["", f"## {module}", *_text(ast.get_docstring(tree) or "")]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                lines += _entry(node)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
