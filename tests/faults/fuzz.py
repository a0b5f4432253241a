"""Fuzzes the functions that read files from users or from other programs.

    python -m tests.faults.fuzz --out=DIR [--inputs=120000] [--seed=0] [--only NAME ...]

Valid inputs are changed at random: bytes are flipped, cut, repeated, spliced or inserted. In JSON, values are replaced,
and the seal is computed again, so that the checks behind it are reached too. A parser may accept an input, or refuse it
with a one-line `UserError` or `OSError`. Anything else is a crash, and so is taking longer than a minute. Inputs that
crash a parser are kept in DIR. The command appends a JSON line for each parser to DIR/fuzz.jsonl and prints a table.
"""

import argparse
import collections
import copy
import json
import pathlib
import random
import signal
import sys
import tempfile
import traceback
import warnings
from typing import Any

from absl import logging

from cnn2gnn_jax.runtime.errors import UserError
from tests.faults.parsers import Parser, parsers

SECONDS = 60  # the time limit of a parser for one input
INSERTED_BYTES = (
    b"", b"\0", b'"', b",", b"\n", b"\r\n", b"..", b"../", b"/etc/passwd", b"=1+1", b"\xef\xbb\xbf", b"\xff\xfe", b"e",
    b"9" * 40, b"-1", b"1e999", b"NaN", b"null", b"[" * 2000, b"{", b"}", b"\x93NUMPY", b"O", b"|O", b"<f4",
    b"PK\x03\x04", b"(10000000000,)", b"True", b"\xff" * 8, bytes(64), b"\x7f\xff\xff\xff", b"\x80", "ä".encode(),
    b"filename,label\n",
)  # fmt: skip
JSON_VALUES = (
    *(None, True, False, -1, 0, 1, 10**30, 1.5, 1e308, "", "x", "../x", "/", "\0", "ä" * 300, [], {}, [[]], [None]),
    *([1, 2, 3], {"a": 1}, [0] * 50, "NaN", "float32", [8, 8, 1], [-1, 8, 1], [10**9, 10**9, 3]),
)


def changed(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The content with a few random changes. Some splice in parts of other contents."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(result) + 1)
        length = rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(8):
            case 0 | 1 if result:
                result[at % len(result)] ^= 1 << rng.randrange(8)
            case 2 if result:
                result[at % len(result)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 3:
                del result[at : at + length]
            case 4:
                result[at:at] = result[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                result[at : at + rng.choice((0, length))] = rng.choice(INSERTED_BYTES)
            case 6:
                del result[at:]
            case 7:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                result[at:] = other[cut : cut + 100_000]
    return bytes(result)


def changed_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON object in which a few values or keys are removed or replaced at random."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        parent = value
        while True:
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
                parent = parent[key]
                continue
            if rng.random() < 0.2:
                del parent[key]
            elif isinstance(parent, dict) and rng.random() < 0.1:
                parent[str(rng.choice(JSON_VALUES))] = parent.pop(key)
            else:
                parent[key] = copy.deepcopy(rng.choice(JSON_VALUES))
            break
    return value


def fuzz(
    name: str, parser: Parser, count: int, seed: int, out: pathlib.Path
) -> tuple[collections.Counter[str], list[str]]:
    """Passes `count` changed inputs to a parser. Returns counts by outcome, and a line for each distinct crash.

    An input for each distinct crash is written to a file in `out`.
    """
    rng, counts = random.Random(f"{name} {seed}"), collections.Counter[str]()
    crashes: dict[str, tuple[Any, str]] = {}
    assert any(accepts(parser, value) for value in parser.valid), f"{name}: no valid input is accepted"
    for _ in range(count):
        valid = rng.choice(parser.valid)
        value = changed_json(valid, rng) if isinstance(valid, dict) else changed(valid, parser.valid, rng)
        outcome, place, message = outcome_of(parser, value)
        counts[outcome] += 1
        if outcome == "crashed":
            crashes.setdefault(place, (value, message))
    for k, (place, (value, message)) in enumerate(crashes.items()):
        path = out / f"crash-{name.replace(' ', '-').replace('/', '-')}-{k}.txt"
        path.write_text(f"{place}\n{message}\n{value!r}\n")
    return counts, [f"{name}: {place}: {message}"[:300] for place, (_, message) in crashes.items()]


def accepts(parser: Parser, value: Any) -> bool:
    """Whether a parser reads a value without an error."""
    try:
        parser.read(value)
    except UserError:
        return False
    return True


def outcome_of(parser: Parser, value: Any) -> tuple[str, str, str]:
    """Passes a value to a parser: `taken`, `refused` or `crashed`, and for a crash its place and its message."""
    signal.alarm(SECONDS)
    try:
        parser.read(value)
    except (UserError, OSError) as error:  # `main` prints an OSError as one line
        if "\n" in str(error) or not str(error):
            return "crashed", f"an error that is not one line: {error}"[:200], ""
        return "refused", "", ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "crashed", f"{type(error).__name__} at {frame.filename}:{frame.lineno}", str(error)
    finally:
        signal.alarm(0)
    return "taken", "", ""


class _TimeoutError(BaseException):
    """A parser exceeded the time limit. It is not an `Exception`, so that no parser can turn it into a refusal."""


def _raise_timeout(*_: object) -> None:
    raise _TimeoutError


def run(
    out: pathlib.Path, inputs: int, seed: int, only: list[str] | None = None
) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Fuzzes parsers.

    Args:
      out: the folder for inputs that crash a parser.
      inputs: the number of inputs of all parsers together.
      seed: the seed of the random changes.
      only: the names of the parsers; None for all.

    Returns:
      The counts by outcome for each parser, and a line for each crash.
    """
    out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity(logging.ERROR)
    earlier_handler = signal.signal(signal.SIGALRM, _raise_timeout)
    all_counts, crashes = {}, []
    try:
        memory = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(dir=memory) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the program does the same where it decodes images
            by_name = parsers(pathlib.Path(folder))
            names = only or list(by_name)
            for name in names:
                all_counts[name], new_crashes = fuzz(name, by_name[name], -(-inputs // len(names)), seed, out)
                crashes += new_crashes
    finally:
        signal.signal(signal.SIGALRM, earlier_handler)
    return all_counts, crashes


def main() -> None:
    """Parses the command line and fuzzes the parsers."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of crashing inputs and fuzz.jsonl")
    parser.add_argument("--inputs", type=int, default=120_000, help="the number of inputs of all parsers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the names of parsers, as the table shows them")
    args = parser.parse_args()
    all_counts, crashes = run(args.out, args.inputs, args.seed, args.only)
    outcomes = ("taken", "refused", "crashed")
    print(f"{'parser':20}{'inputs':>9}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for name, counts in [*all_counts.items(), ("all", sum(all_counts.values(), collections.Counter()))]:
        print(f"{name:20}{counts.total():9}" + "".join(f"{counts[outcome]:10}" for outcome in outcomes))
    with open(args.out / "fuzz.jsonl", "a") as file:
        for name, counts in all_counts.items():
            row = {"parser": name, "inputs": counts.total(), **{outcome: counts[outcome] for outcome in outcomes}}
            file.write(json.dumps(row) + "\n")
    print("\n".join(crashes))
    sys.exit(bool(crashes))


if __name__ == "__main__":
    main()
