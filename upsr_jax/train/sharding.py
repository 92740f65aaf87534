"""Where arrays live: batches are split over all devices, the training state over one axis of them.

The mesh has two axes. Over "data" the state is copied; over "fsdp" each device keeps a part of it
(ZeRO, arXiv 1910.02054). Averages and optimizer state are never whole on a device; the parameters
are gathered for the length of a step.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**12  # elements: to split less costs more messages than it saves memory


def create_mesh(data: int, fsdp: int) -> Mesh:
    """Lay out all devices of all hosts as `data` x `fsdp`; `data` = -1 takes as many as there are.

    Devices of one host stay together along "fsdp", whose messages are the larger ones.
    Raises ValueError if the sizes don't multiply to the number of devices.
    """
    # By host, as the loaders count rows.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    rows = len(devices) // fsdp if data == -1 and fsdp > 0 else data
    if min(rows, fsdp) < 1 or rows * fsdp != len(devices):
        raise ValueError(
            f"config.mesh of data {data} x fsdp {fsdp} doesn't fit {len(devices)} devices: set "
            "sizes that multiply to their number (data = -1 takes what fsdp leaves)"
        )
    return Mesh(np.asarray(devices).reshape(rows, fsdp), BATCH_AXES)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Place a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Split the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def split_state(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Choose the sharding of every array of a tree by its shape alone.

    Its longest axis that divides evenly is split over "fsdp" (of several, the first); an array
    without one, or of fewer than `MIN_SHARDED_SIZE` elements, is copied.
    """

    def rule(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.shape["fsdp"] == 0]
        if not axes or leaf.size < MIN_SHARDED_SIZE:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(rule, tree)


def make_gather_fn(mesh: Mesh) -> Callable[[Any], Any]:
    """Build the function that puts a whole copy of a tree's arrays on every device."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def to_global(batch: Any, mesh: Mesh) -> Any:
    """Make global arrays of this host's rows of a batch, a tree of NumPy arrays [rows, ...]."""
    sharding = split_batch(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put(tree: Any, shardings: Any) -> Any:
    """Place NumPy arrays that every host has; each device receives its own part only."""
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, x.__getitem__),
        tree,
        shardings,
    )
