"""Degrade batches on the devices that train on them: `data.degrade_on` is "device"."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from upsr_jax.cluster.compiler import compiler_options
from upsr_jax.data.degradation.device import degrade_batch
from upsr_jax.data.degradation.poisson import packed_tables
from upsr_jax.train.sharding import BATCH_AXES, put, replicated

Batch = dict[str, jax.Array]

SALT = 2**32 - 1  # no step's number: a step's own keys are folded from its number
BATCH = 2**32 - 1  # no row's
AT_ONCE = 16  # crops that keep a GPU busy, in less than a gigabyte for those of 256 pixels


def create_degrade(config: ConfigDict, mesh: Mesh) -> Callable[[Batch], Batch]:
    """Compile `make_degrade_fn`, on first use, and put the tables that it reads on the devices."""
    options = compiler_options(jax.default_backend())
    jitted = jax.jit(make_degrade_fn(config, mesh), compiler_options=options)
    return partial(jitted, put(packed_tables(), replicated(mesh)))


def make_degrade_fn(config: ConfigDict, mesh: Mesh) -> Callable[[jax.Array, Batch], Batch]:
    """Build what degrades the batches that `pipeline.train_batches` makes for a device.

    `(counts, batch) -> batch`: "hr" become signed images, and with "place" they give "lr"; all else
    stays. `counts` is `poisson.packed_tables()`. An image's draws depend on (seed, step, row)
    alone, and each device degrades the rows that it has. With `data.pool` images of a step have in
    common what `degrade_batch` draws so.
    """
    data, settings = config.data, config.degradation.to_dict()
    on_cpus = jax.default_backend() == "cpu"
    orders = {name: settings[name] for name in ("first", "second", "final")}
    degrade_fn = partial(degrade_batch, **orders, at_once=None if on_cpus else AT_ONCE)

    def fold(keys: jax.Array, numbers: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in)(keys, numbers)

    def degrade_rows(counts: jax.Array, hr: jax.Array, place: jax.Array) -> Batch:
        salted = jax.random.fold_in(jax.random.key(config.seed), SALT)
        steps = jax.vmap(partial(jax.random.fold_in, salted))(place[:, 0])
        images = fold(steps, place[:, 1])
        shared = fold(steps if data.pool else images, jnp.full(len(hr), BATCH, jnp.uint32))
        lr = degrade_fn(counts, images, shared, hr)
        return {"hr": to_signed(hr), "lr": to_signed(lr)}

    # Not left to the partitioner, which gathers what goes into an FFT on all devices.
    rows = PartitionSpec(BATCH_AXES)
    in_specs = (PartitionSpec(), rows, rows)
    sharded = jax.shard_map(degrade_rows, mesh=mesh, in_specs=in_specs, out_specs=rows)

    def degrade(counts: jax.Array, batch: Batch) -> Batch:
        kept = {key: value for key, value in batch.items() if key not in ("hr", "place")}
        return kept | sharded(counts, batch["hr"], batch["place"])

    return degrade


def to_signed(image: jax.Array) -> jax.Array:
    """Bring 8-bit images to [-1, 1], as the host does."""
    return 2 * (image.astype(np.float32) / 255) - 1
