"""What a run does before its first step: check, load, initialize and tell."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from upsr_jax import run_info
from upsr_jax.config import config_as_json
from upsr_jax.files import write_json
from upsr_jax.networks import init_denoiser, init_estimator
from upsr_jax.pretrained import load_lpips_vgg, load_networks
from upsr_jax.sharding import put, replicated, split_state
from upsr_jax.state import TrainState, create_state
from upsr_jax.train_step import make_loss_fn

logger = logging.getLogger(__name__)


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raise ValueError if the batch can't be split over the devices and microbatches."""
    if config.train.microbatches < 1 or config.data.batch_size % (
        mesh.size * config.train.microbatches
    ):
        raise ValueError(
            f"a batch of {config.data.batch_size} can't be split evenly over {mesh.size} devices "
            f"and {config.train.microbatches} microbatches: set config.data.batch_size to a "
            "multiple of their product"
        )


def create_workdir(workdir: Path) -> None:
    """Make the folder on process 0, and see on all others that it is the same one.

    Raises OSError if that fails.
    """
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    path = workdir / f".token_{token}"
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path.touch()
    multihost_utils.sync_global_devices("workdir")
    if not path.exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} doesn't see {path}, which process 0 has written: "
            "choose a --workdir that all hosts share"
        )
    multihost_utils.sync_global_devices("workdir seen")
    if jax.process_index() == 0:
        path.unlink()


def describe_run(workdir: Path, config: ConfigDict) -> None:
    """Write the config and the environment into the folder of a run that is about to train."""
    (workdir / "finished").unlink(missing_ok=True)
    write_json(workdir / "config.json", config_as_json(config))
    write_json(workdir / "environment.json", run_info.describe_environment())


def log_setup(config: ConfigDict, mesh: Mesh, params: Any) -> None:
    """Tell what is about to run, in the first lines of the log."""
    size = f"{config.data.batch_size} images of {config.data.crop_size} pixels"
    if config.train.microbatches > 1:
        size += f" in {config.train.microbatches} microbatches"
    source = ", ".join(config.data.folders or config.data.pairs)
    devices = jax.devices()
    overview = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    logger.info("revision   %s", run_info.git_revision())
    logger.info(
        "devices    %d x %s, %d processes",
        len(devices),
        devices[0].device_kind,
        jax.process_count(),
    )
    logger.info("mesh       %s", " x ".join(f"{axis} {n}" for axis, n in mesh.shape.items()))
    logger.info("precision  arithmetic in %s, parameters in float32", config.dtype)
    logger.info("batch      %s", size)
    logger.info("data       %s", source)
    logger.info("training   the %s, %d steps", config.network, config.train.steps)
    logger.info("\n%s", overview)


def load_frozen(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Load the weights that the loss needs and that don't learn, a copy for every device."""
    frozen = {}
    if config.loss.lpips_weight:
        frozen["lpips"] = load_lpips_vgg()
    if config.network == "denoiser":
        frozen["estimator"] = load_part(config, "estimator")
    return put(frozen, jax.tree.map(lambda _: replicated(mesh), frozen))


def load_part(config: ConfigDict, part: str) -> Any:
    """Load one network, "denoiser" or "estimator", from the model folder config.pretrained names.

    Raises ValueError if none is named, or if its network is missing or another than the config's.
    """
    folder = config.pretrained[part]
    if not folder:
        raise ValueError(
            f"training the denoiser needs a trained {part}: set config.pretrained.{part} to a "
            "model folder, trained with configs/estimator_x4.py or converted with `upsr convert`"
        )
    return load_networks(folder, config, [part])[part]


def create_sharded_state(
    config: ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Draw the trained network's parameters, or load those config.pretrained names, and begin.

    Every array is made in the shards in which it stays.
    """
    shapes = abstract_state(config, optimizer, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    if config.pretrained[config.network]:
        params = put(load_part(config, config.network), shardings.params)
    else:
        params = jax.jit(partial(draw_params, config), out_shardings=shardings.params)()
    create = partial(create_state, optimizer=optimizer)
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)


def abstract_state(
    config: ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Describe the state by shapes, dtypes and shardings, without an array."""
    create = partial(create_state, optimizer=optimizer)
    shapes = jax.eval_shape(create, jax.eval_shape(partial(draw_params, config)))

    def with_sharding(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, shapes, split_state(shapes, mesh))


def draw_params(config: ConfigDict) -> Any:
    """Draw the trained network's parameters from config.seed."""
    init_fn, block = {
        "estimator": (init_estimator, config.estimator),
        "denoiser": (init_denoiser, config.model),
    }[config.network]
    return init_fn(jax.random.fold_in(jax.random.key(config.seed), 0x1217), block)


def speed_limits(config: ConfigDict, params: Any, frozen: Any) -> tuple[float | None, float | None]:
    """Count the FLOPs of one step, nothing computed twice, and those all devices do in a second.

    Both are None where the peak of the devices is not known.
    """
    peak = run_info.peak_flops(jax.devices()[0].device_kind, config.dtype)
    if peak is None:
        return None, None
    return count_flops(config, params, frozen), peak * jax.device_count()


def count_flops(config: ConfigDict, params: Any, frozen: Any) -> float | None:
    """Count the FLOPs of the loss and its gradient on one batch, as XLA does before it compiles.

    None where JAX has no CPU backend, the only one that counts so.
    """
    batch_size, size = config.data.batch_size, config.data.crop_size
    shapes = {"hr": (batch_size, size, size, 3), "lr": (batch_size, size // 4, size // 4, 3)}
    batch = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    params, frozen = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, frozen)
    )
    grads = jax.grad(make_loss_fn(config, remat="none"), has_aux=True)

    def loss_and_grads(params, frozen, batch):
        return grads(params, frozen, batch, jax.random.split(jax.random.key(0), batch_size))

    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            costs = jax.jit(loss_and_grads).lower(params, frozen, batch).cost_analysis()
    except RuntimeError:
        return None
    return costs["flops"] if costs else None
