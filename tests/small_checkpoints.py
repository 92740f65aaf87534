"""Checkpoints of a few random arrays, to be written, damaged and restored."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from upsr_jax.train.checkpoints import (
    Found,
    check_same_config,
    check_same_images,
    choose_checkpoint,
    open_checkpoints,
    restore,
    save,
)
from upsr_jax.train.optimizer import create_optimizer
from upsr_jax.train.state import TrainState, create_state

OPTIMIZERS = {
    name: create_optimizer(optax.constant_schedule(1e-3), 0.9, 0.999, 0.0, 1.0, muon)
    for name, muon in (("adamw", False), ("muon", True))
}


def state_after(step: int, seed: int = 0, optimizer: str = "adamw") -> TrainState:
    """A state of random numbers."""
    generator = np.random.default_rng(seed)
    params = {"layer": {"kernel": jnp.zeros((64, 48)), "bias": jnp.zeros(48)}}

    def draw(x):
        if x.dtype == jnp.int32:
            return jnp.full_like(x, step)
        return jnp.asarray(generator.standard_normal(x.shape), x.dtype)

    return jax.tree.map(draw, create_state(params, OPTIMIZERS[optimizer]))


IMAGES = [5, 7]  # in two folders
FROZEN = {"estimator": {"kernel": jnp.arange(12.0).reshape(3, 4)}, "lpips": {"w": jnp.ones(3)}}


def save_steps(
    workdir: Path, config: ConfigDict, *steps: int, metrics=None, optimizer="adamw"
) -> None:
    with open_checkpoints(workdir, config) as checkpoints:
        for step in steps:
            state = state_after(step, step, optimizer)
            save(checkpoints, config, state, FROZEN, IMAGES, metrics and metrics[step])


def chosen(workdir: Path) -> Found:
    found = choose_checkpoint(workdir)
    assert found is not None
    return found


def restored(workdir: Path, config: ConfigDict, frozen=FROZEN, optimizer="adamw") -> TrainState:
    found = chosen(workdir)
    check_same_config(found.meta["config"], config, workdir)
    check_same_images(found, IMAGES, workdir)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_after(0, optimizer=optimizer))
    with open_checkpoints(workdir, config):
        return restore(workdir, found, config, shapes, frozen)


def assert_same(state: TrainState, expected: TrainState) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
