"""What a run does before its first step: check, load, initialize and tell."""

import json
import logging
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
from upsr_jax.networks import init_denoiser, init_estimator
from upsr_jax.pretrained import load_lpips_vgg, load_networks
from upsr_jax.sharding import put, replicated, split_batch, split_state
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


def prepare_workdir(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and put the config and the environment there, from process 0.

    Raises OSError if that fails, or if another host doesn't see the folder.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "finished").unlink(missing_ok=True)
        environment = json.dumps(run_info.describe_environment(), indent=2)
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
        (workdir / "environment.json").write_text(environment + "\n")
    multihost_utils.sync_global_devices("workdir")
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} doesn't see {workdir / 'config.json'}, which process 0 "
            "has written: choose a --workdir that all hosts share"
        )


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


def init_params(config: ConfigDict, mesh: Mesh) -> Any:
    """Draw the trained network's first parameters, or load those config.pretrained names.

    No device ever holds more of them than its part.
    """
    if config.pretrained[config.network]:
        params = load_part(config, config.network)
        return put(params, split_state(params, mesh))
    init_fn, block = {
        "estimator": (init_estimator, config.estimator),
        "denoiser": (init_denoiser, config.model),
    }[config.network]

    def draw():
        return init_fn(jax.random.fold_in(jax.random.key(config.seed), 0x1217), block)

    return jax.jit(draw, out_shardings=split_state(jax.eval_shape(draw), mesh))()


def create_sharded_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Start from sharded parameters; every part of the state lies as they do."""
    create = partial(create_state, optimizer=optimizer)
    shardings = split_state(jax.eval_shape(create, params), mesh)
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)


def speed_limits(
    config: ConfigDict, state: TrainState, frozen: Any, mesh: Mesh
) -> tuple[float | None, float | None]:
    """Count the FLOPs of one step, nothing computed twice, and those all devices do in a second.

    Both are None where the peak of the devices is not known.
    """
    peak = run_info.peak_flops(jax.devices()[0].device_kind, config.dtype)
    if peak is None:
        return None, None
    return count_flops(config, state.params, frozen, mesh), peak * mesh.size


def count_flops(config: ConfigDict, params: Any, frozen: Any, mesh: Mesh) -> float | None:
    """Count the FLOPs of the loss and its gradient on one batch, as XLA does before it compiles."""
    batch_size, size = config.data.batch_size, config.data.crop_size
    shapes = {"hr": (batch_size, size, size, 3), "lr": (batch_size, size // 4, size // 4, 3)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=split_batch(mesh))
        for name, shape in shapes.items()
    }
    grads = jax.grad(make_loss_fn(config, remat="none"), has_aux=True)

    def loss_and_grads(params, frozen, batch):
        return grads(params, frozen, batch, jax.random.split(jax.random.key(0), batch_size))

    costs = jax.jit(loss_and_grads).lower(params, frozen, batch).cost_analysis()
    return costs["flops"] if costs else None
