"""Chooses the training images that the bank of a bundle holds, and reports the accuracy for banks of several sizes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cnn2gnn_jax.evaluation import thinning
from cnn2gnn_jax.evaluation.choice import Grid
from cnn2gnn_jax.runtime.console import right_aligned
from cnn2gnn_jax.serving.trained import Trained
from cnn2gnn_jax.training import bank as banks


class BankChoice(NamedTuple):
    """Which training images a bank holds.

    size: the number of training images; 0 for all.
    selection: how they are selected, one of `thinning.SELECTIONS`.
    """

    size: int = 0
    selection: str = thinning.SELECTIONS[0]


WHOLE_BANK = BankChoice()


def with_bank(student: Trained, choice: BankChoice) -> tuple[Trained, dict[str, Any]]:
    """Replaces the student's bank by the chosen part of it.

    Returns:
      The student with this bank, and facts for the manifest: `images`, `bytes` and `accuracy` of this bank, the same
      for other sizes (`sizes`), `settings`, `key_type`, `selection`, `held_out_images` and `accuracy_alone`.

    Raises:
      UserError: the bank cannot have this size or this selection, see `thinning.check_size`.
    """
    stored, section = student.bank, student.recorded.config.evaluate.training_set
    assert stored is not None
    images, settings = len(stored.bank.labels), stored.bank.settings
    size = choice.size or images
    thinning.check_size(stored, size, choice.selection)
    grid = Grid((settings.space,), (settings.signal,), section.sparsities, section.weights, section.epsilons)
    # Without held-out images there are no accuracies to compare, so only the chosen size is computed.
    sizes = [] if stored.held_out is None else thinning.sizes(images, len(student.recorded.classes))
    rows, bank = {}, stored.bank
    for candidate in sorted({*sizes, size}):
        thinned = thinning.thin(stored, grid, candidate, choice.selection)
        rows[candidate] = {"images": candidate, "bytes": banks.size(thinned.bank), "accuracy": thinned.accuracy}
        if candidate == size:
            bank = thinned.bank
    facts = {
        **rows[size],
        "settings": bank.settings._asdict(),
        "key_type": str(bank.keys.dtype),
        "selection": choice.selection,
        "held_out_images": 0 if stored.held_out is None else len(stored.held_out.labels),
        "accuracy_alone": stored.accuracy_alone,
        "sizes": list(rows.values()),
    }
    return student._replace(bank=stored._replace(bank=bank)), facts


def sizes_table(facts: Mapping[str, Any]) -> str:
    """Formats the accuracy for each size of the bank as a table for the terminal, from the facts of `with_bank`."""
    rows = [("bank, images", "bytes", "% right", "")]
    for row in facts["sizes"]:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        rows.append((f"{row['images']:,}", f"{row['bytes']:,}", accuracy, "<-" * (row["images"] == facts["images"])))
    if facts["accuracy_alone"] is not None:
        rows.append(("none", "0", f"{facts['accuracy_alone']:.2f}", ""))
    return right_aligned(rows)
