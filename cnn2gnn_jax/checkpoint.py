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
        """The newest state, shaped `like` (shapes with the shardings that say where to put it).

        However many devices wrote it: rows that fill up the head's table for their number are added or dropped.

        Raises:
          UserError: it cannot be read, or has other shapes.
        """
        step = self.newest()
        try:
            _check_shapes(self._saved(step), like)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like, strict=False))
            return self._manager.restore(step, args=args).state
        except Exception as error:  # Orbax and its storage raise many kinds
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} cannot be restored ({reason}): "
                "delete that folder to train this stage again"
            ) from error

    def restore_as_saved(self) -> Any:
        """The newest state as nested dictionaries of arrays on one device, whatever its shapes and devices."""
        step, here = self.newest(), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), self._saved(step).tree)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state

    def _saved(self, step: int | None) -> Any:
        """The shapes of the state of a step."""
        return ocp.StandardCheckpointHandler().metadata(self.folder.absolute() / f"step_{step}" / "state")

    def facts(self) -> dict[str, Any]:
        """The JSON facts saved with the newest state."""
        return self._manager.restore(self.newest(), args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts


def newest_step(folder: pathlib.Path) -> int | None:
    """The step of the newest checkpoint in a folder that may be missing, looked up by this process alone."""
    steps = [int(name) for path in folder.glob("step_*") if (name := path.name.removeprefix("step_")).isdigit()]
    return max(steps, default=None)


def _check_shapes(saved: Any, like: Any) -> None:
    """Raises ValueError if two states differ in more than the rows of the head's table."""
    found, expected = ({_name(path): leaf.shape for path, leaf in _leaves(tree)} for tree in (saved, like))
    if found.keys() != expected.keys():
        raise ValueError(f"it lacks or adds {sorted(found.keys() ^ expected.keys())[0]}")
    for name, shape in expected.items():
        rows = 1 if name.startswith("table/") else 0
        if found[name][rows:] != shape[rows:]:
            raise ValueError(f"{name} is {list(found[name])}, expected {list(shape)}")


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Any) -> str:
    """`table/values/kernel`, whether a part is a key, an attribute or a position."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
