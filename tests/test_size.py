"""Tests that files, functions and parameter lists in the package are short."""

import ast

from tests.package import modules, parsed

LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 50, 6


def functions():
    """Yields the name and the syntax tree of every function and method, also of nested ones."""
    for name, tree in parsed().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def parameters(node):
    """Returns the number of parameters of a function, without `self` and `cls`."""
    arguments = node.args
    each = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return sum(argument is not None and argument.arg not in ("self", "cls") for argument in each)


def test_no_file_is_long():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_function_is_long():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def test_no_function_takes_many_parameters():
    counts = {name: parameters(node) for name, node in functions()}
    assert {name: n for name, n in counts.items() if n > MOST_PARAMETERS} == {}
