"""The plan of a sweep: its cells, in the order of its file."""

import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.runtime import built_in, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import records, tuning

SIZES = ("", "smoke", "digits")  # the words after the colon, unless a sweep file has WORDS of its own


class Cell(NamedTuple):
    """A run of a sweep.

    name, config: its own.
    places: in tables and figures; none of a candidate, which another cell chooses from.
    candidates: what this cell chooses from before it runs, none of most.
    teacher: names the teacher that it trains or shares; None where it trains none.
    title: tells it in a line of progress.
    """

    name: str
    config: ConfigDict
    places: list[dict[str, Any]]
    candidates: Sequence[tuning.Candidate]
    teacher: str | None
    title: str


def load(path: pathlib.Path, size: str, settings: Mapping[str, Any]) -> list[Cell]:
    """The cells of a sweep file, in its order.

    Args:
      path: of the file, or the name of a built-in sweep.
      size: the word after its colon.
      settings: the values of config fields that hold for every cell, by dotted names.

    Raises:
      UserError: there is no such file, it is no sweep, or a config makes no sense.
    """
    path = built_in.path_of(str(path), "sweep")
    module = runpy.run_path(str(path))
    sizes = module.get("WORDS", SIZES)
    if size not in sizes:
        raise UserError(f"{size!r} after the colon is no size: choose one of {', '.join(sizes[1:])}, or none")
    sweep = module.get("sweep")
    if sweep is None:
        raise UserError(f"{path} is no sweep: it has no function sweep(add, size)")
    cells: dict[str, Cell] = {}
    sweep(_adder(cells, path, settings), size)
    return list(cells.values())


def _adder(cells: dict[str, Cell], path: pathlib.Path, settings: Mapping[str, Any]) -> Callable[..., None]:
    """The function `add` that a sweep file is called with: it adds to `cells`, by name."""

    def add(
        config: ConfigDict, kind: str, name: str, tune: Mapping[str, Sequence[Any]] | None = None, **place: Any
    ) -> None:
        if kind not in records.KINDS:
            raise UserError(f"{path}: {kind!r} is no kind of table or figure: choose one of {', '.join(records.KINDS)}")
        config = ConfigDict(config.to_dict())
        config.update_from_flattened_dict(settings)
        config.tensorboard = False
        # What is set for every cell is not chosen.
        tune = {field: values for field, values in (tune or {}).items() if field not in settings}
        standing = {"kind": kind, "name": name, **place}
        try:
            *candidates, cell = _with_candidates(config, tune, ", ".join(map(str, standing.values())))
        except UserError as error:
            raise UserError(f"{path}, the cell {place} of {name}: {error}") from None
        for candidate in candidates:
            cells.setdefault(candidate.name, candidate)
        cells.setdefault(cell.name, cell).places.append(standing)

    return add


def _with_candidates(config: ConfigDict, tune: Mapping[str, Sequence[Any]], title: str) -> list[Cell]:
    """The cell of a config, after those that it chooses from."""
    complete, tried = configs.resolve(config), tuning.candidates(config, tune)
    name = configs.cell_fingerprint(complete)
    if tried:
        name = storage.fingerprint({"cell": name, "candidates": [candidate.name for candidate in tried]})
    candidates = [
        Cell(
            candidate.name,
            candidate.config,
            [],
            (),
            configs.cell_teacher(configs.resolve(candidate.config)),
            f"candidate {tuning.as_text(candidate.fields)}: {title}",
        )
        for candidate in tried
    ]
    return [*candidates, Cell(name, config, [], tried, configs.cell_teacher(complete), title)]
