"""Requirements agree, the README's example runs, every config resolves at every size."""

import doctest
import importlib
import pathlib
import re
import runpy

import pytest

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import distillers, gnn, graph, inference, losses, networks

ROOT = pathlib.Path(__file__).parent.parent


def test_the_three_requirements_differ_in_jax_alone():
    def others(name):
        return [line for line in (ROOT / name).read_text().splitlines() if not re.match(r"jax\b", line)]

    assert others("requirements.txt") == others("requirements-cpu.txt") == others("requirements-tpu.txt")
    assert "jax[cuda12]" in (ROOT / "requirements.txt").read_text()


def test_the_readmes_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [block] = [block for block in blocks if "sparse_neighbors" in block]
    names = {}
    exec(block, names)
    assert names["logits"].shape == (7, 10)
    assert names["adjacency"].shape == (32, 32)


@pytest.mark.parametrize("module", [graph, gnn, inference, losses, distillers, networks], ids=lambda m: m.__name__)
def test_the_docstrings_examples_are_right(module):
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0


def test_the_figures_of_readme_and_results_are_those_of_the_records():
    made = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert made["readme"](text) == text, "run `make docs`"
    for folder, tables in made["sweeps"]().items():
        page = (ROOT / "results" / folder / "results.md").read_text(encoding="utf-8")
        assert page == made["formats"].document(tables), f"results/{folder}: run `make docs`"


def test_the_reference_page_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run `make docs`"


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "stl10", "mini_imagenet", "image_folder"])
def test_every_config_resolves(name):
    module = importlib.import_module(f"configs.{name}")
    sizes = ["", "smoke"]
    for word in [*sizes, *networks.PAIRS]:
        config = configs.resolve(module.get_config(word))
        if word in networks.PAIRS:
            assert f"{config.teacher.network}-{config.student.network}" == word
        for train in (config.teacher.train, config.student.train):
            assert None not in train.values()


@pytest.mark.parametrize("method", distillers.METHODS)
def test_every_method_resolves_and_has_a_fingerprint_of_its_own(method):
    from configs import cifar100

    def named(method):
        config = cifar100.get_config()
        config.method = method
        return configs.student_fingerprint(configs.resolve(config), "data")

    assert sum(named(other) == named(method) for other in distillers.METHODS) == 1


def test_fields_that_change_how_fast_keep_the_fingerprint_and_others_do_not():
    from configs import cifar100

    def named(**fields):
        config = cifar100.get_config()
        config.update_from_flattened_dict(fields)
        return configs.student_fingerprint(configs.resolve(config), "data")

    same = {"student.train.chunk_steps": 7, "cache_dir": "/elsewhere", "seeds": 3, "tensorboard": False}
    assert all(named(**{field: value}) == named() for field, value in same.items())
    other = {"student.sparsity": 3, "seed": 1, "teacher.seed": 1, "teacher.train.epochs": 3, "distill.temperature": 4.0}
    assert len({named(**{field: value}) for field, value in other.items()} | {named()}) == len(other) + 1
