"""What a run does before its first step: check, load, initialize and tell."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from upsr_jax.cluster import environment
from upsr_jax.files.whole import write_json
from upsr_jax.train.config import config_as_json
from upsr_jax.train.step import make_loss_fn

logger = logging.getLogger(__name__)


def describe_run(workdir: Path, config: ConfigDict) -> None:
    """Write the config and the environment into the folder of a run that is about to train."""
    (workdir / "finished").unlink(missing_ok=True)
    write_json(workdir / "config.json", config_as_json(config))
    write_json(workdir / "environment.json", environment.describe_environment())


def log_setup(config: ConfigDict, mesh: Mesh, params: Any) -> None:
    """Tell what is about to run, in the first lines of the log."""
    size = f"{config.data.batch_size} images of {config.data.crop_size} pixels"
    if config.train.microbatches > 1:
        size += f" in {config.train.microbatches} microbatches"
    source = ", ".join(config.data.folders or config.data.pairs)
    if config.data.folders:
        source += f", degraded on the {config.data.degrade_on}"
    devices = jax.devices()
    overview = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    logger.info("revision   %s", environment.git_revision())
    logger.info(
        "devices    %d x %s, %d processes",
        len(devices),
        devices[0].device_kind,
        jax.process_count(),
    )
    logger.info("mesh       %s", " x ".join(f"{axis} {n}" for axis, n in mesh.shape.items()))
    lpips = f", LPIPS in {config.loss.lpips_dtype}" if config.loss.lpips_weight else ""
    logger.info("precision  arithmetic in %s%s, parameters in float32", config.dtype, lpips)
    logger.info("batch      %s", size)
    logger.info("data       %s", source)
    logger.info("training   the %s, %d steps", config.network, config.train.steps)
    logger.info("\n%s", overview)


def speed_limits(config: ConfigDict, params: Any, frozen: Any) -> tuple[float | None, float | None]:
    """Count the FLOPs of one step, nothing computed twice, and those all devices do in a second.

    Both are None where the peak of the devices is not known, or a teacher takes steps in a loop, of
    which XLA counts only one.
    """
    peak = environment.peak_flops(jax.devices()[0].device_kind, config.dtype)
    if peak is None or config.pretrained.teacher:
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
