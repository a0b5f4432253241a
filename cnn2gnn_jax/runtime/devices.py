"""The devices of a run, and the mapping of functions over them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from cnn2gnn_jax.runtime.collectives import AXIS
from cnn2gnn_jax.runtime.errors import UserError

SEEDS = "seeds"  # the mapped axis if each device trains its own students
_WHOLE_BATCHES = "devices"  # the mapped axis if each device computes whole batches
BACKENDS = ("shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, which map functions of one device's part over all devices.

    In the methods below, `axes` is a prefix of a pytree: for each leaf the axis along which it is split over the
    devices, or None if every device has the whole leaf. Arrays are global JAX arrays that are sharded over the mesh.
    Only between `place` and `collect` do they have the layout of the backend's mapped functions.

    mesh: the devices of all processes, in the order of the processes; None for one device, where nothing is mapped.
    backend: one of BACKENDS.
    spreads_seeds: whether the seeds are spread over the devices, instead of each batch.
    shards_head: whether the rows of the head's table are sharded.
    """

    mesh: Mesh | None = None
    backend: str = BACKENDS[0]
    spreads_seeds: bool = False
    shards_head: bool = False

    @property
    def count(self) -> int:
        """The number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def local_count(self) -> int:
        """The number of devices of this process."""
        return -(-self.count // jax.process_count())

    @property
    def axis(self) -> str:
        """The mapped axis; the functions in `collectives` act only under `collectives.AXIS`."""
        return SEEDS if self.spreads_seeds else AXIS

    def padded(self, size: int) -> int:
        """Rounds `size` up to a multiple of the number of devices."""
        return -(-size // self.count) * self.count

    def local_slice(self, size: int) -> slice:
        """This process's part of an axis of `size`, a multiple of the number of devices."""
        if self.mesh is None:
            return slice(0, size)
        local_size = size // jax.process_count()
        return slice(jax.process_index() * local_size, (jax.process_index() + 1) * local_size)

    def map(
        self, function: Callable, in_axes: Any, out_axes: Any, donate_argnums: Any = (), axis: str | None = None
    ) -> Callable:
        """Maps a function of one device's part over all devices, and compiles it.

        Args:
          function: a function of arrays.
          in_axes: the `axes` of each argument.
          out_axes: the `axes` of the result.
          donate_argnums: as for `jax.jit`.
          axis: the name of the mapped axis; `self.axis` by default.
        """
        axis = axis or self.axis
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donate_argnums)
        if self.backend == "pmap":
            return jax.pmap(
                function,
                axis,
                in_axes=in_axes,
                out_axes=out_axes,
                devices=list(self.mesh.devices.flat),
                donate_argnums=donate_argnums,
            )
        specs, out_specs = _specs(in_axes, axis), _specs(out_axes, axis)
        mesh = Mesh(self.mesh.devices, (axis,))
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate_argnums)

    def shardings(self, axes: Any, tree: Any) -> Any:
        """The shardings of the global arrays of `tree`."""
        mesh = self.mesh
        if mesh is None:
            return jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), tree)
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), jax.tree.broadcast(_specs(axes), tree))

    def shaped(self, tree: Any, axes: Any) -> Any:
        """The shapes of `tree`, with shardings."""
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, self.shardings(axes, tree)
        )

    def replicate(self, tree: Any) -> Any:
        """Copies arrays that each process has to every device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x)), tree)

    def split(self, tree: Any, axis: int) -> Any:
        """Makes the arguments of a mapped function from this process's part along `axis`; see `local_slice`."""
        if self.mesh is None:
            return tree
        if self.backend == "pmap":
            return jax.tree.map(lambda x: _cut(x, axis, self.local_count), tree)
        at = NamedSharding(self.mesh, _specs(axis))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(at, x), tree)

    def place(self, tree: Any, axes: Any) -> Any:
        """Lays global arrays out as arguments of a mapped function; the result may share memory with `tree`."""
        if self.mesh is None:
            return tree
        specs = jax.tree.broadcast(_specs(axes), tree)

        def cut(tree: Any) -> Any:
            return jax.tree.map(lambda x, spec: _cut(x, len(spec) - 1, self.count) if len(spec) else x, tree, specs)

        layout = cut if self.backend == "pmap" else lambda tree: tree
        return jax.jit(layout, out_shardings=self.shardings(axes, tree))(tree)

    def collect(self, tree: Any, axes: Any) -> Any:
        """Makes global arrays from the result of a mapped function: the inverse of `place`."""
        if self.mesh is None or self.backend != "pmap":
            return tree
        specs = jax.tree.broadcast(_specs(axes), tree)
        if jax.process_count() > 1:  # pmap returns each process its own part
            tree = multihost_utils.host_local_array_to_global_array(tree, self.mesh, specs)
        if not any(len(spec) for spec in jax.tree.leaves(specs)):
            return tree

        def join(tree: Any) -> Any:
            return jax.tree.map(lambda x, spec: _join(x, len(spec) - 1) if len(spec) else x, tree, specs)

        return jax.jit(join, out_shardings=self.shardings(axes, tree))(tree)

    def everywhere(self, function: Callable) -> Callable:
        """Compiles a function of global arrays whose whole result is on every device."""
        return jax.jit(function, out_shardings=None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec()))

    def batchwise(self, function: Callable) -> Callable[[Any, Callable[[int], Any], int], Iterator[Any]]:
        """Compiles a function that each device applies to whole batches.

        Args:
          function: `function(shared, batch) -> result`.

        Returns:
          `run(shared, read, count)`, which yields the results of the batches `read(0)`, ..., `read(count - 1)` in this
          order, as NumPy arrays. Every process gets all results, and reads only the batches of its own devices.
        """
        if self.mesh is None:
            compiled = jax.jit(function)
            return lambda shared, read, count: (jax.device_get(compiled(shared, read(k))) for k in range(count))

        def on_each(shared: Any, batches: Any) -> Any:
            result = function(shared, jax.tree.map(lambda x: x[0], batches))
            return jax.tree.map(lambda x: lax.all_gather(x, _WHOLE_BATCHES), result)

        mapped = self.map(on_each, (None, 0), None, axis=_WHOLE_BATCHES)

        def run(shared: Any, read: Callable[[int], Any], count: int) -> Iterator[Any]:
            shared, local = self.replicate(shared), range(self.count)[self.local_slice(self.count)]
            for first in range(0, count, self.count):
                # A device without a batch computes the last one again; that result is dropped.
                parts = [read(min(first + k, count - 1)) for k in local]
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
                results = jax.device_get(mapped(shared, self.split(stacked, 0)))
                for k in range(min(self.count, count - first)):
                    yield jax.tree.map(lambda x, k=k: x[k], results)

        return run


ONE = Devices()


def from_config(section: Any) -> Devices:
    """The devices of a config's section `parallel`.

    Raises:
      UserError: there are fewer devices, or several processes would not use all of them.
    """
    available = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    count = section.devices or len(available)
    if count > len(available):
        raise UserError(
            f"parallel.devices is {count}, but JAX finds {len(available)}: choose at most that, or 0 for all"
        )
    if jax.process_count() > 1 and count < len(available):
        processes = f"{jax.process_count()} processes use all {len(available)}"
        raise UserError(f"parallel.devices is {count}, but {processes}: set 0")
    if count == 1:
        return ONE
    return Devices(Mesh(np.asarray(available[:count]), (AXIS,)), section.backend, section.seeds, section.shard_head)


def on_first_device(tree: Any) -> Any:
    """Moves replicated arrays to this process's first device; other arrays stay as they are."""

    def first(x: Any) -> Any:
        is_sharded = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
        return x.addressable_data(0) if is_sharded and x.is_fully_replicated else x

    return jax.tree.map(first, tree)


def _specs(axes: Any, name: str = AXIS) -> Any:
    return jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, name),
        axes,
        is_leaf=lambda axis: axis is None,
    )


def _cut(x: Any, axis: int, parts: int) -> Any:
    """Reshapes (..., N, ...) to (..., parts, N / parts, ...), since pmap maps over an axis of the size of the mesh."""
    return x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])


def _join(x: Any, axis: int) -> Any:
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
