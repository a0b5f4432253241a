"""Tests that requirements agree, that README and docs agree with code and records, and that every config resolves."""

import ast
import doctest
import importlib
import importlib.metadata
import json
import os
import pathlib
import re
import runpy
import sys
import tomllib

import numpy as np
import pytest
from scipy import stats

import cnn2gnn_jax
from cnn2gnn_jax import config as configs
from cnn2gnn_jax import distillers, gnn, graph, inference, losses, networks
from cnn2gnn_jax.runtime import fields
from tests.package import parsed

ROOT = pathlib.Path(__file__).parent.parent


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The packages that requirements.txt must list for an environment with a GPU.
LISTED = tuple("jax[cuda12] flax optax orbax-checkpoint tensorflow-datasets ml-collections chex pytest".split())
# Other packages import these but do not require them; see pyproject.toml.
INDIRECT = {"flatbuffers", "importlib-resources", "array-record"}


def distributions(requirements):
    """Returns the normalized names of the required distributions."""
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def test_the_requirements_for_a_gpu_are_the_extras_and_bounds_stand_once():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    *listed, package = lines
    assert package == "-e .[cuda12,dev]"
    assert tuple(line.partition(";")[0] for line in listed) == LISTED  # only names, without bounds
    extras = PROJECT["optional-dependencies"]
    assert listed[0].replace('"', "'") in extras["cuda12"]
    assert distributions(listed) <= distributions([*PROJECT["dependencies"], *extras["dev"]])
    everything = [*PROJECT["dependencies"], *(line for each in extras.values() for line in each)]
    bounded = [line for line in everything if re.search("[<>=]", line.partition(";")[0])]
    assert len(distributions(bounded)) == len(bounded)
    assert set(everything) - set(bounded) == {*extras["cuda12"], *extras["tpu"], "setuptools"}


def test_the_package_requires_what_it_imports_and_nothing_else():
    statements = [node for tree in parsed().values() for node in ast.walk(tree)]
    imported = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in statements if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"cnn2gnn_jax"}
    required, providers = distributions(PROJECT["dependencies"]), importlib.metadata.packages_distributions()
    by_import = {name: distributions(providers[name]) & required for name in others}
    assert all(by_import.values()), by_import
    assert set().union(*by_import.values()) == required - INDIRECT and required >= INDIRECT


def test_the_version_is_the_same_everywhere():
    assert f"version: {cnn2gnn_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{cnn2gnn_jax.__version__}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_configs_have_one_import_name(monkeypatch):
    assert os.readlink(ROOT / "cnn2gnn_jax" / "configs") == "../configs"
    monkeypatch.syspath_prepend(ROOT)
    for name in ("configs", "configs.base", "configs.sweeps.grids"):
        with pytest.raises(ImportError, match="write `from cnn2gnn_jax.configs import base` instead"):
            importlib.import_module(name)


def test_the_readmes_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [block] = [block for block in blocks if "GraphStudent" in block]
    names = {}
    exec(block, names)
    assert names["logits"].shape == (297, 10)
    assert (names["logits"].argmax(-1) == names["labels"][1500:]).mean() > 0.8


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_links_lead_to_files_in_the_repository():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            assert (page.parent / "".join(link)).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    "module", [graph, gnn, inference, losses, distillers, networks, fields], ids=lambda m: m.__name__
)
def test_the_docstrings_examples_are_right(module):
    outcome = doctest.testmod(module)
    assert outcome.failed == 0
    assert outcome.attempted > 0


def test_the_figures_of_the_pages_of_results_are_those_of_the_records(docs_script):
    made = docs_script("make_results.py")
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert made["generated"].with_section("results", made["section"]()) == text, "run `make docs`"
    for folder, tables in made["sweeps"]().items():
        page = (ROOT / "results" / folder / "results.md").read_text(encoding="utf-8")
        assert page == made["formats"].document(tables), f"results/{folder}: run `make docs`"


@pytest.mark.parametrize("name", ["verdict", "reproduction"])
def test_the_tables_of_the_pages_on_full_size_are_those_of_the_records(docs_script, name):
    made = docs_script("make_full_size.py")
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert made["generated"].with_section(name, made["SECTIONS"][name]()) == text, "run `make docs`"


def lines(folder):
    return [json.loads(line) for line in (ROOT / "results" / folder / "results.jsonl").read_text().splitlines()]


def seeds_of(records, title, row, graph, mechanism, order=None):
    """Returns accuracies by seed. They are read directly from the records, not by the code of the report."""
    return {
        entry["seed"]: entry["accuracy"]
        for record in records
        if any((place["name"], place.get("row")) == (title, row) for place in record["places"])
        for entry in record["accuracies"]
        if (entry["graph"], entry["mechanism"], entry["batch_order"]) == (graph, mechanism, order)
    }


def test_the_readmes_table_is_what_the_records_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## What the graph is worth")[2].partition("\n\n")[2].partition("\n\n")[0]
    cells_of_rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    protocols = (
        ("learned", "one_by_one", None),
        ("learned", "batch_by_batch", "shuffled"),
        ("off", "one_by_one", None),
        ("off", "training_set", None),
        ("learned", "batch_by_batch", "class_sorted"),
    )
    all_images = "Students over all of {}, few epochs"
    rows = {}
    for name, folder, title, row in (
        ("digits, 10 seeds", "sweep-digits", "Table 1: digits", "cnn2gnn"),
        (
            "CIFAR-100, all images, 3 seeds",
            "sweep-full-students-cifar100",
            all_images.format("CIFAR-100"),
            "cnn2gnn, teacher",
        ),
        (
            "Mini-ImageNet at 32x32, all images, 3 seeds",
            "sweep-full-students-mini_imagenet",
            all_images.format("Mini-ImageNet"),
            "cnn2gnn, teacher",
        ),
        ("CIFAR-100, reduced, 3 seeds", "sweep-cifar100-reduced", "CIFAR-100, reduced", "cnn2gnn"),
    ):
        by_seed = [list(seeds_of(lines(folder), title, row, *protocol).values()) for protocol in protocols]
        assert all(f"{len(accuracies)} seeds" in name for accuracies in by_seed if accuracies)
        rows[name] = [f"{np.mean(a):.2f} ± {np.std(a, ddof=1):.2f}" if a else "" for a in by_seed]
    entries = json.loads((ROOT / "results" / "image_folder" / "results.json").read_text())["accuracies"]
    by = {(e["graph"], e["mechanism"], e["batch_order"]): f"{e['accuracy']:.2f}" for e in entries}
    rows["a folder of 1,000 pictures, 10 classes, 1 seed"] = [by.get(protocol, "") for protocol in protocols]
    shown = {name: cells for name, *cells in cells_of_rows if name in rows}
    assert shown == rows and len(cells_of_rows) == len(rows)
    assert all(rows[name][3] for name in rows if "all images" in name)


def test_the_sentences_on_the_page_of_results_are_what_the_records_say():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    sentences = {line.split("**")[1]: line for line in text.splitlines() if line.startswith("- **")}
    protocols = {
        "one by one": ("learned", "one_by_one", None),
        "batch by batch": ("learned", "batch_by_batch", "shuffled"),
        "graph off": ("off", "one_by_one", None),
    }
    counts = {}
    for folder, title in (("sweep-digits", "Table 1: digits"), ("sweep-cifar100-reduced", "CIFAR-100, reduced")):
        records = lines(folder)
        for name, protocol in protocols.items():
            ours, theirs = (seeds_of(records, title, row, *protocol) for row in ("cnn2gnn", "gnn"))
            differences = [ours[seed] - theirs[seed] for seed in ours]
            assert f"{name} {np.mean(differences):+.2f} [" in sentences["What distillation adds to the graph student"]
            counts[title] = counts.get(title, 0) + (stats.ttest_1samp(differences, 0).pvalue < 0.05)
        for name in ("one by one", "batch by batch"):
            ours, theirs = (seeds_of(records, title, "cnn2gnn", *protocols[k]) for k in (name, "graph off"))
            worth = np.mean([ours[seed] - theirs[seed] for seed in ours])
            assert f"{name} {worth:+.2f} [" in sentences["What the learned graph is worth in the paper's setting"]
    line = sentences["What distillation adds to the graph student"]
    if not any(
        "correct_sha256" in record for folder in ("sweep-digits", "sweep-cifar100-reduced") for record in lines(folder)
    ):
        assert counts == {"Table 1: digits": 3, "CIFAR-100, reduced": 0}
        assert (
            "On digits, CNN2GNN is better than GNN under each of the 3 protocols. On reduced CIFAR-100, every interval "
            "includes zero." in line
        )
    # The learned graph does not make every single student worse, so the text must give each difference.
    for folder in ("digits", "cifar100-smoke", "mini_imagenet-smoke", "image_folder"):
        entries = json.loads((ROOT / "results" / folder / "results.json").read_text())["accuracies"]
        on, off = (
            round(e["accuracy"], 2)
            for g in ("learned", "off")
            for e in entries
            if (e["graph"], e["mechanism"]) == (g, "one_by_one")
        )
        assert f" {on - off:+.2f}" in sentences["What the learned graph is worth in the paper's setting"]
    for wrong in (
        "ahead of GNN in every protocol",
        "better than GNN under every protocol",
        "one class or two",
        "Every public function",
        "costs accuracy.**",
    ):
        assert wrong not in text
        assert wrong not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_results_tells_the_recipes_of_each_run_and_names_graphs_without_structure():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| a folder of 1,000 pictures"))
    assert row.split("|")[2].strip() == "`crd`, `paper`; 50; 10"
    entries = json.loads((ROOT / "results" / "cifar100-smoke" / "results.json").read_text())["accuracies"]
    assert {round(e["diagnostics"]["distinct_anchors"], 6) for e in entries if e["graph"] == "learned"} == {1.0}
    note = next(line for line in text.splitlines() if line.startswith("Uniform: "))
    assert "CIFAR-100, `:smoke`, batch by batch" in note and "Mini-ImageNet" not in note


def test_every_public_module_is_on_one_reference_page():
    pages = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["reference"]()
    paths = [path for path in (ROOT / "cnn2gnn_jax").rglob("*.py") if path.read_text(encoding="utf-8").strip()]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    # A command is documented by its usage and its public functions, and every other module as a whole.
    commands = re.findall(r"^## `python -m ([\w.]+)`$", pages["commands"], re.MULTILINE)
    shown = re.findall(r"^::: ([\w.]+)$", "\n".join(pages.values()), re.MULTILINE)
    whole = [name for name in shown if name in modules]
    assert sorted(whole + [f"{name}.__main__" if name in whole else name for name in commands]) == sorted(modules)


def test_every_method_is_on_the_page_of_methods():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(f"| `{method}` |" in text for method in distillers.METHODS)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "stl10", "mini_imagenet", "image_folder"])
def test_every_config_resolves(name):
    module = importlib.import_module(f"cnn2gnn_jax.configs.{name}")
    sizes = ["", "smoke"]
    for word in [*sizes, *networks.PAIRS]:
        config = configs.resolve(module.get_config(word))
        if word in networks.PAIRS:
            assert f"{config.teacher.network}-{config.student.network}" == word
        for train in (config.teacher.train, config.student.train):
            assert None not in train.values()


@pytest.mark.parametrize("method", distillers.METHODS)
def test_every_method_resolves_and_has_a_fingerprint_of_its_own(method):
    from cnn2gnn_jax.configs import cifar100

    def named(method):
        config = cifar100.get_config()
        config.method = method
        return configs.student_fingerprint(configs.resolve(config), "data")

    assert sum(named(other) == named(method) for other in distillers.METHODS) == 1


def test_fields_that_change_how_fast_keep_the_fingerprint_and_others_do_not():
    from cnn2gnn_jax.configs import cifar100

    def named(**fields):
        config = cifar100.get_config()
        config.update_from_flattened_dict(fields)
        return configs.student_fingerprint(configs.resolve(config), "data")

    same = {"student.train.chunk_steps": 7, "cache_dir": "/elsewhere", "seeds": 3, "tensorboard": False}
    assert all(named(**{field: value}) == named() for field, value in same.items())
    other = {"student.sparsity": 3, "seed": 1, "teacher.seed": 1, "teacher.train.epochs": 3, "distill.temperature": 4.0}
    assert len({named(**{field: value}) for field, value in other.items()} | {named()}) == len(other) + 1
