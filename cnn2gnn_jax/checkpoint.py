"""Checkpoints by Orbax: the newest state of a stage, and the best where one is chosen on held-out images."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cnn2gnn_jax.errors import UserError


class Checkpoints:
    """The checkpoints in one folder; the newest `keep` stay. Use as a context manager.

    Orbax writes beside and renames, so a killed process leaves whole checkpoints alone.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2) -> None:
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step")
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # waits for the write in progress

    def newest(self) -> int | None:
        """The step of the newest checkpoint, None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: dict[str, Any] | None = None) -> None:
        """Writes a state, in the background, and JSON facts about it."""
        # A copy, since the next step is given the buffers of the state itself to reuse.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)), facts=ocp.args.JsonSave(facts or {})
        )
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when the write in progress is complete."""
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """The newest state, shaped `like` (arrays or their shapes).

        Raises:
          UserError: it cannot be read, or has other shapes.
        """
        step = self.newest()
        args = ocp.args.Composite(state=ocp.args.StandardRestore(jax.eval_shape(lambda: like)))
        try:
            return self._manager.restore(step, args=args).state
        except Exception as error:  # Orbax and its storage raise many kinds
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} cannot be restored ({reason}): "
                "delete that folder to train this stage again"
            ) from error

    def restore_as_saved(self) -> Any:
        """The newest state as nested dictionaries of NumPy arrays, whatever its shapes."""
        return self._manager.restore(self.newest(), args=ocp.args.Composite(state=ocp.args.StandardRestore())).state

    def facts(self) -> dict[str, Any]:
        """The JSON facts saved with the newest state."""
        return self._manager.restore(self.newest(), args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
