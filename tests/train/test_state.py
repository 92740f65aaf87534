"""One update of the training state."""

import jax.numpy as jnp
import numpy as np
import optax

from upsr_jax.train.state import apply_gradients, create_state


def test_average_follows_the_parameters():
    optimizer = optax.sgd(0.5)
    state = create_state({"w": jnp.array([1.0, 2.0])}, optimizer)
    weights, average = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    for step, gradient in enumerate(([1.0, -1.0], [2.0, 0.0], [-4.0, 8.0]), 1):
        state = apply_gradients(state, {"w": jnp.array(gradient)}, optimizer, ema_decay=0.9)
        weights = weights - 0.5 * np.array(gradient)
        average = 0.9 * average + 0.1 * weights
        assert state.step == step
        np.testing.assert_allclose(state.params["w"], weights, rtol=1e-6)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-6)


def test_average_has_buffers_of_its_own():
    """The state's buffers are donated: one buffer twice would be an error."""
    state = create_state({"w": jnp.ones(3)}, optax.sgd(0.5))
    pointers = [tree["w"].unsafe_buffer_pointer() for tree in (state.params, state.ema_params)]
    assert pointers[0] != pointers[1]
