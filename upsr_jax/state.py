"""What training changes: step, parameters, their moving average and the optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


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
