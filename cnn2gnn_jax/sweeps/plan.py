"""The plan of a sweep: its cells, in the order in which its file adds them."""

import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnn2gnn_jax import config as configs
from cnn2gnn_jax.runtime import built_in, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.sweeps import records, tuning

SIZES = ("", "smoke", "digits")  # the words after the colon, unless a sweep file defines WORDS


class Cell(NamedTuple):
    """A run of a sweep.

    name: the fingerprint of its config and candidates.
    config: its config.
    places: its places in tables and figures; empty for a candidate.
    candidates: the candidates from which its hyperparameters are chosen before it runs; empty for most cells.
    teacher: the fingerprint of the teacher that it trains or shares; None where it trains none.
    title: its name in progress messages.
    """

    name: str
    config: ConfigDict
    places: list[dict[str, Any]]
    candidates: Sequence[tuning.Candidate]
    teacher: str | None
    title: str


def load(path: pathlib.Path, size: str, settings: Mapping[str, Any]) -> list[Cell]:
    """Loads the cells of a sweep file, in its order.

    Args:
      path: the file, or the name of a built-in sweep.
      size: the word after the colon.
      settings: values of config fields that are set in every cell, by dotted names.

    Raises:
      UserError: there is no such file, it is not a sweep, or a config is invalid.
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
    """Makes the function `add` that is passed to a sweep file; it adds to `cells`, by name."""

    def add(
        config: ConfigDict, kind: str, name: str, tune: Mapping[str, Sequence[Any]] | None = None, **place: Any
    ) -> None:
        if kind not in records.KINDS:
            raise UserError(f"{path}: {kind!r} is no kind of table or figure: choose one of {', '.join(records.KINDS)}")
        config = ConfigDict(config.to_dict())
        config.update_from_flattened_dict(settings)
        config.tensorboard = False
        # A field that the command line sets is not tuned.
        tune = {field: values for field, values in (tune or {}).items() if field not in settings}
        full_place = {"kind": kind, "name": name, **place}
        try:
            *candidates, cell = _with_candidates(config, tune, ", ".join(map(str, full_place.values())))
        except UserError as error:
            raise UserError(f"{path}, the cell {place} of {name}: {error}") from None
        for candidate in candidates:
            cells.setdefault(candidate.name, candidate)
        cells.setdefault(cell.name, cell).places.append(full_place)

    return add


def _with_candidates(config: ConfigDict, tune: Mapping[str, Sequence[Any]], title: str) -> list[Cell]:
    """The cell of a config, preceded by the cells of its candidates."""
    resolved, candidates = configs.resolve(config), tuning.candidates(config, tune)
    name = configs.cell_fingerprint(resolved)
    if candidates:
        name = storage.fingerprint({"cell": name, "candidates": [candidate.name for candidate in candidates]})
    candidate_cells = [
        Cell(
            candidate.name,
            candidate.config,
            [],
            (),
            configs.cell_teacher(configs.resolve(candidate.config)),
            f"candidate {tuning.as_text(candidate.fields)}: {title}",
        )
        for candidate in candidates
    ]
    return [*candidate_cells, Cell(name, config, [], candidates, configs.cell_teacher(resolved), title)]
