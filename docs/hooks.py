"""Pages of the documentation site that are made of the code and of the records. MkDocs calls the functions `on_...`.

The API reference has a page for each room of the package, with every public module on one of them.
"""

import ast
import pathlib
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "cnn2gnn_jax"

# Modules at the top of the package: the method, the commands (those that can be run), and all others.
METHOD = ("graph", "gnn", "inference", "losses", "neighbors")
PAGES = {
    "method": ("The method", "Eq. 2 to 7, the two-layer student, Mechanisms 1 and 2, the graph over a training set."),
    "commands": ("Commands", "The programs. `--help` lists their flags, `--version` tells the versions."),
    "pipeline": ("The pipeline", "The chain from images to report, what a run is, and its config."),
}
ROOMS = {
    "networks": "ResNet, VGG and WRN, and one registry of them.",
    "distillers": "One module for each distillation method, all with one signature.",
    "data": "Data sets, the verified cache, augmentation, and the order of an epoch.",
    "training": "Task, state, step and loop; the head's table; checkpoints and metrics.",
    "evaluation": "Accuracy under each protocol, and what a run reports.",
    "serving": "Prediction with a trained student, and the bundle.",
    "sweeps": "Grids of configs: their plan, their division into shards, and their execution.",
    "report": "Tables, figures and the page of results.",
    "runtime": "Devices, collectives, processes, files, errors and command lines.",
}

# Files outside of docs/ that pages link to, and where their copies are in the site.
COPIES = {
    "results/README.md": "records/index.md",
    "results/": "records/",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "configs/base.py": "reference/configs.md",
}
OUT_OF_SEARCH = "---\nsearch:\n  exclude: true\n---\n\n"  # tables of figures would crowd out what explains them


def modules() -> list[str]:
    """The dotted names of all public modules that hold anything, in the order of their paths."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_public = not any(part.startswith("_") and part not in ("__init__", "__main__") for part in parts)
        if is_public and path.read_text(encoding="utf-8").strip():
            names.append(".".join(parts).removesuffix(".__init__"))
    return names


def page_of(module: str) -> str:
    """The reference page of a module: its room, or `method`, `commands` or `pipeline` at the top of the package."""
    parts = module.split(".")[1:]
    if not parts:
        return "pipeline"
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    if 'if __name__ == "__main__"' in source or parts[-1] == "__main__":
        return "commands"
    if len(parts) > 1 or path.is_dir():
        return parts[0]
    return "method" if parts[0] in METHOD else "pipeline"


def reference() -> dict[str, str]:
    """The Markdown of each reference page, by its name, in the order of the navigation."""
    by_page: dict[str, list[str]] = {}
    for module in sorted(modules(), key=_rank):
        by_page.setdefault(page_of(module), []).append(module)
    return {name: _page(name, by_page[name]) for name in (*PAGES, *ROOMS, *by_page) if name in by_page}


def _rank(module: str) -> int:
    """Modules of the method in the order of METHOD, all others as they were."""
    name = module.split(".")[-1]
    return METHOD.index(name) if page_of(module) == "method" else len(METHOD)


def _page(name: str, names: Iterable[str]) -> str:
    title, lead = title_and_lead(name)
    entry = _command if name == "commands" else "::: {}".format
    return "\n\n".join([f"# {title}", lead, *map(entry, names)]) + "\n"


def _command(module: str) -> str:
    """A program: its usage as it stands in the source, since brackets are no links there, and its public functions."""
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    options = "\n    options:\n      heading_level: 3\n      show_root_full_path: false"
    functions = [f"::: {module}.{name}{options}" for name in names if not name.startswith("_")]
    usage = f"```{{ .text .usage }}\n{ast.get_docstring(tree)}\n```"
    return "\n\n".join([f"## `python -m {module.removesuffix('.__main__')}`", usage, *functions])


def title_and_lead(name: str) -> tuple[str, str]:
    """The title of a reference page and its first sentence."""
    return PAGES.get(name) or (name.capitalize(), ROOMS.get(name, ""))


def _fields() -> str:
    source = (ROOT / "configs" / "base.py").read_text(encoding="utf-8")
    lead = (
        "`configs/base.py` has every field of a config with its default and description. Set a field on the command "
        "line as `--config.student.sparsity=10`."
    )
    return f"# Config fields\n\n{lead}\n\n```python\n{source}```\n"


def pages() -> dict[str, str]:
    """All pages that are not files under docs/, by their path in the site's sources."""
    made = {f"reference/{name}.md": text for name, text in reference().items()}
    made["reference/configs.md"] = _fields()
    for path in sorted((ROOT / "results").rglob("*.md")):
        name = path.relative_to(ROOT / "results").as_posix().replace("README.md", "index.md")
        made[f"records/{name}"] = OUT_OF_SEARCH + path.read_text(encoding="utf-8").replace("](../docs/", "](../")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        made[name.lower()] = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return made


def on_config(config):
    """Appends the generated pages to the navigation."""
    names = [{title_and_lead(name)[0]: f"reference/{name}.md"} for name in reference()]
    config.nav.append({"API reference": [*names, {"Config fields": "reference/configs.md"}]})
    project = {"Contributing": "contributing.md", "Changelog": "changelog.md", "Records": "records/index.md"}
    config.nav.append({"Project": [{title: path} for title, path in project.items()]})
    return config


def on_files(files, config):
    """Adds the generated pages."""
    from mkdocs.structure.files import File  # only the site needs MkDocs; tests read the functions above without it

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ lead to the copies in the site; Markdown within <details> is Markdown."""
    for link, copy in COPIES.items():
        markdown = markdown.replace(f"](../{link}", f"]({copy}")
    return markdown.replace("<details>", '<details markdown="1">')
