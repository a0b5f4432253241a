"""python -m benchmarks [--out=FILE] [NAME ...]: runs all benchmarks, or those named, and prints a table.

Each benchmark runs in a process of its own. Run nothing else on the machine at the same time.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys

from benchmarks.timing import Row, machine
from cnn2gnn_jax.runtime import storage, xla

NAMES = ("head", "mechanisms", "loop", "seeds", "torch_steps", "compilation", "teacher", "epochs", "training_set")


def main() -> None:
    """Runs the benchmarks and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; by default all")
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file for the table")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}: choose one of {', '.join(NAMES)}")
    if arguments.alone:
        xla.set_cpu_options()
        print(json.dumps(importlib.import_module(f"benchmarks.{arguments.names[0]}").rows()))
        return
    rows: list[Row] = []
    for name in arguments.names or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", "--alone", name]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if process.returncode:
            print(f"{name} failed, see above; the other benchmarks continue", file=sys.stderr)
            continue
        rows += [Row(*row) for row in json.loads(process.stdout)]
    text = "\n".join(table(rows, arguments.names))
    print(text)
    if arguments.out is not None:
        storage.write_text(arguments.out, text)


def table(rows: list[Row], names: list[str]) -> list[str]:
    """Formats rows as the lines of a Markdown page."""
    lines = ["# Benchmarks", "", f"`python -m benchmarks{''.join(f' {name}' for name in names)}`", "", machine(), ""]
    lines += ["| comparison | ratio | target | details |", "|---|---:|---|---|"]
    lines += [f"| {row.what} | {row.ratio:.2f} | {row.target} | {row.detail} |" for row in rows]
    return [*lines, ""]


if __name__ == "__main__":
    main()
