"""Run functions over batches on all devices of this process, each compiled once for a shape."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

WHOLE, SPLIT = PartitionSpec(), PartitionSpec("batch")


def check_devices() -> None:
    """Start JAX; raise ValueError if it finds no device to run on."""
    try:
        jax.devices()
    except Exception as error:  # JAX has no one type for it, nor always a message
        reason = str(error).partition("\n")[0].rstrip(".")
        wanted = os.environ.get("JAX_PLATFORMS")
        raise ValueError(
            f"JAX found no device to run on{f' ({reason})' if reason else ''}"
            + (f", with JAX_PLATFORMS={wanted}: unset that, or " if wanted else ": ")
            + "install JAX for your device, as upsr_jax[cuda12] does"
        ) from error


def local_mesh(device: str | None = None) -> Mesh:
    """Line up the devices of this process, over which batches are split.

    `device` chooses them: "cpu", "gpu" or "tpu", or one of these by number, as "gpu:1". Raises
    ValueError as `check_devices` does, or if there is no such device.
    """
    check_devices()
    devices = jax.local_devices()
    if device is not None:
        platform, _, number = device.partition(":")
        try:
            devices = jax.local_devices(backend=platform)
            devices = [devices[int(number)]] if number else devices
        except (RuntimeError, ValueError, IndexError) as error:
            found = ", ".join(f"{each.platform}:{i}" for i, each in enumerate(devices))
            raise ValueError(
                f"there is no device {device!r}: choose cpu, or one of those found here, {found}"
            ) from error
    return Mesh(np.asarray(devices), ("batch",))


def put_whole(tree: Any, mesh: Mesh) -> Any:
    """Place a copy of NumPy arrays on every device of this process."""
    return jax.device_put(tree, NamedSharding(mesh, WHOLE))


def localize(tree: Any, mesh: Mesh) -> Any:
    """Take this process's copies of arrays that every device of all processes has a copy of."""
    sharding = NamedSharding(mesh, WHOLE)

    def own(x: jax.Array) -> jax.Array:
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

    return jax.tree.map(own, tree)


def split_rows(function: Callable[[Any, Any], Any], mesh: Mesh) -> Any:
    """Jit a function `(params, batch) -> results` for batches that are split evenly over devices.

    Batch and results are trees of arrays [rows, ...]. Each device runs the same program on its own
    rows and none talks to another: compiled for all rows and then split, it might round differently
    for another number of devices.
    """
    specs = WHOLE, SPLIT
    on_each_device = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False
    )
    return jax.jit(on_each_device, in_shardings=[NamedSharding(mesh, spec) for spec in specs])


@contextmanager
def fitting(what: str, cure: str) -> Iterator[None]:
    """Turn a device's lack of memory into a MemoryError that names what doesn't fit, and a cure."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{what} do not fit into the device's memory; {cure}.") from error
