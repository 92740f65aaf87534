"""What training changes: step, parameters, their moving average and the optimizer's state."""

import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from upsr_jax.cluster.compiler import compiler_options
from upsr_jax.models.build import init_denoiser, init_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.sharding import put, replicated, split_state
from upsr_jax.weights.model_folder import (
    check_same_diffusion,
    load_model,
    load_networks,
    take_networks,
)
from upsr_jax.weights.published import load_lpips_vgg

logger = logging.getLogger(__name__)


@struct.dataclass
class TrainState:
    """State after `step` updates (int32), a tree of arrays, or of what a map makes of them."""

    step: Any
    params: Any
    ema_params: Any
    opt_state: optax.OptState


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Start at step 0 with the average equal to the parameters."""
    ema_params = jax.tree.map(jnp.copy, params)  # an own buffer: the state's buffers are donated
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))


def apply_gradients(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """Update the parameters once and the average by ema = decay·ema + (1 - decay)·params."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = optax.incremental_update(params, state.ema_params, 1 - ema_decay)
    return TrainState(state.step + 1, params, ema_params, opt_state)


def load_frozen(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Load the weights that the loss needs and that don't learn, a copy for every device."""
    frozen = {}
    if config.loss.lpips_weight:
        frozen["lpips"] = load_lpips_vgg()
    if config.network == "denoiser" and config.prior.estimate == "network":
        frozen["estimator"] = load_part(config, "estimator")
    if config.pretrained.teacher:
        frozen["teacher"] = load_teacher(config)
    return put(frozen, jax.tree.map(lambda _: replicated(mesh), frozen))


def load_part(config: ConfigDict, part: str) -> Any:
    """Load one network, "denoiser" or "estimator", from the model folder config.pretrained names.

    Raises ValueError if none is named, or if its network is missing or another than the config's.
    """
    folder = folder_of(config, part)
    if not folder:
        raise ValueError(
            f"training the denoiser needs a trained {part}: set config.pretrained.{part} to a "
            "model folder, trained with configs/estimator_x4.py or converted with `upsr convert`"
        )
    return load_networks(folder, ModelConfig.of(config), [part])[part]


def folder_of(config: ConfigDict, part: str) -> str:
    """Name the model folder a network is from: that of a teacher, if there is none of its own."""
    return config.pretrained[part] or config.pretrained.teacher


def load_teacher(config: ConfigDict) -> Any:
    """Load the denoiser, of several steps, of the model folder config.pretrained.teacher.

    Raises ValueError if it is missing, another than the config's or of one step.
    """
    folder, wanted = config.pretrained.teacher, ModelConfig.of(config)
    stored, params = load_model(folder)
    params = take_networks(folder, stored, params, wanted, ["denoiser"])
    check_same_diffusion(folder, stored, wanted)
    if stored.sampler["method"] == "one_step":
        raise ValueError(
            f"{folder} restores in one step already: set config.pretrained.teacher to a model of "
            "several steps"
        )
    return params["denoiser"]


def create_sharded_state(
    config: ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Draw the trained network's parameters, or load those config.pretrained names, and begin.

    Without config.pretrained.strict, arrays that don't fit are drawn. Every array is made in the
    shards in which it stays.
    """
    shapes = abstract_state(config, optimizer, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    options = compiler_options(jax.default_backend())
    folder, strict = folder_of(config, config.network), config.pretrained.strict
    if folder and strict:
        params = put(load_part(config, config.network), shardings.params)
    else:
        draw = partial(draw_params, config)
        params = jax.jit(draw, out_shardings=shardings.params, compiler_options=options)()
        if folder:
            params = load_what_fits(folder, config.network, params)
    create = jax.jit(
        partial(create_state, optimizer=optimizer),
        out_shardings=shardings,
        donate_argnums=0,
        compiler_options=options,
    )
    return create(params)


def load_what_fits(folder: str, part: str, params: Any) -> Any:
    """Put the arrays of a model folder's network in place of those of the same name and shape.

    What is left on either side is logged. Raises ValueError if nothing fits.
    """
    stored = load_model(folder)[1]
    if part not in stored:
        raise ValueError(f"{folder} holds no {part}, only {', '.join(stored)}")
    found: Any = flatten_dict(stored[part], sep="/")
    drawn: Any = flatten_dict(params, sep="/")
    fits = [name for name in drawn if name in found and found[name].shape == drawn[name].shape]
    if not fits:
        raise ValueError(f"{folder} holds a {part} of which no array fits this one")
    for path, left, source in (("drawn anew", drawn, found), ("left out", found, drawn)):
        for name in sorted(left.keys() - {*fits}):
            other = source[name].shape if name in source else "none"
            logger.warning("%s: %s %s, there %s", path, name, left[name].shape, other)
    logger.info("%d of %d arrays of the %s are from %s", len(fits), len(drawn), part, folder)
    taken = put({name: found[name] for name in fits}, {name: drawn[name].sharding for name in fits})
    return unflatten_dict(drawn | taken, sep="/")


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
