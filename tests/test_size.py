"""Nothing in the package is long: files, functions and the parameters of functions."""

import ast

from tests.package import modules, parsed

LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 50, 6


def functions():
    """(module and name, node) of every function and method, also inside others."""
    for name, tree in parsed().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def parameters(node):
    """How many; the object that a method is called on is none."""
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
