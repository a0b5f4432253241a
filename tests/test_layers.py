"""Tests that imports point down and have no cycles.

No module imports a module of a higher layer, or of another part of its own layer. An import counts wherever it stands:
at the top of a module, in a function, or under TYPE_CHECKING.
"""

import ast

import pytest

from tests.package import modules, parsed

# The layers from the top down. A name also stands for all modules in its folder, unless a longer name matches them.
LAYERS = (
    ("main", "sweep", "predict", "export", "report.__main__"),  # the commands
    ("sweeps",),  # many runs
    ("pipeline",),  # one run, stage after stage
    ("evaluation", "serving", "report"),  # what is done with trained models
    ("training",),
    ("run",),  # a config with its data set and its folders
    ("config",),
    ("configs",),  # the fields of a config, the built-in configs and sweeps
    ("inference",),  # the method
    ("gnn", "distillers", "neighbors"),
    ("graph", "losses", "networks", "data", "training.recipes"),
    ("runtime",),
    ("",),  # the version
)


def imports():
    """Returns, for each module of the package, the modules of the package that it imports."""
    known = set(modules())
    imported = {}
    for name, tree in parsed().items():
        targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively: name the package"
                targets |= {
                    member if member.removeprefix("cnn2gnn_jax.") in known else node.module
                    for member in (f"{node.module}.{alias.name}" for alias in node.names)
                }
        own = {target.removeprefix("cnn2gnn_jax").removeprefix(".") for target in targets if in_package(target)}
        imported[name] = own
    return imported


def in_package(target):
    return target == "cnn2gnn_jax" or target.startswith("cnn2gnn_jax.")


def place(name):
    """Returns the layer of a module, counted from the top, and the name in `LAYERS` that stands for the module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        part = ".".join(parts[:length])
        for depth, layer in enumerate(LAYERS):
            if part in layer:
                return depth, part
    pytest.fail(f"{name} is in no layer: add it to LAYERS")


def test_every_module_is_in_a_layer_and_every_layer_there():
    for name in filter(None, modules()):
        place(name)  # It fails for a module that is in no layer.
    assert [part for layer in LAYERS for part in layer if part not in modules()] == []


def test_imports_point_down():
    upward = []
    for name, targets in imports().items():
        for target in targets:
            (depth, part), (target_depth, target_part) = place(name), place(target)
            if target_depth < depth or (target_depth == depth and part != target_part):
                upward.append(f"{name} imports {target}")
    assert sorted(upward) == []


def test_no_imports_go_round():
    left = imports()
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert {name: sorted(targets & left.keys()) for name, targets in left.items()} == {}
