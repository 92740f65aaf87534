"""Rematerialized networks compute the same from the same parameters, and keep less."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from upsr_jax.models.atd import ATD
from upsr_jax.models.lpips import LPIPS, Conv, Stage
from upsr_jax.models.remat import rematerialize
from upsr_jax.models.swin_unet import SwinUNet

MODEL = tiny.get_config().model.to_dict() | {
    "multipliers": (1,),
    "num_res_blocks": (0,),
    "swin_depth": 1,
}
ESTIMATOR = tiny.get_config().estimator.to_dict() | {"depths": (2,), "convffn_kernel_size": 1}
BACKBONE = (Stage((Conv(4), Conv(4))), Stage((Conv(6),), pool=2))
IMAGE = (8, 8, 3)
NETWORKS = {  # and the shapes of their inputs, without the batch
    "denoiser": (SwinUNet(**MODEL), [(16, 16, 48), (), (16, 16, 96)]),
    "estimator": (ATD(**ESTIMATOR), [IMAGE]),
    "lpips": (LPIPS(BACKBONE), [IMAGE, IMAGE]),
}


def draw_inputs(shapes, batch: int):
    """Draw images, and timesteps, which have no shape of their own."""
    rng = np.random.default_rng(1)
    return [
        jnp.asarray(rng.standard_normal((batch, *shape), np.float32))
        if shape
        else jnp.zeros(batch, jnp.int32)
        for shape in shapes
    ]


def value_and_gradients(name: str, remat: str):
    """Give the sum of squares of a network's outputs and its gradients by params and images."""
    network, shapes = NETWORKS[name]
    first, *others = draw_inputs(shapes, 1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(  # so small that nothing saturates
        lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32),
        jax.eval_shape(network.init, jax.random.key(0), first, *others),
    )

    def total(params, first):
        return jnp.sum(network.clone(remat=remat).apply(params, first, *others) ** 2)

    fast_to_compile = {"xla_llvm_disable_expensive_passes": True}
    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), compiler_options=fast_to_compile)
    return grad(params, first)


def kept_numbers(name: str, remat: str) -> int:
    """Count the float32 numbers per image that the forward pass keeps for the backward pass."""
    network, shapes = NETWORKS[name]
    network = network.clone(remat=remat)

    def residuals(batch: int) -> int:
        inputs = draw_inputs(shapes, batch)
        params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
        kept = jax.eval_shape(lambda *args: jax.vjp(network.apply, *args)[1], params, *inputs)
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    return residuals(2) - residuals(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_stay_the_same(name):
    expected, found = value_and_gradients(name, "none"), value_and_gradients(name, "full")
    # Some biases change nothing, as a norm follows: their gradient is rounding.
    rounding = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=rounding), found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_have_the_same_names(name):
    network, shapes = NETWORKS[name]
    inputs = draw_inputs(shapes, 1)

    def params(remat: str):
        return jax.eval_shape(network.clone(remat=remat).init, jax.random.key(0), *inputs)

    assert params("selective") == params("full") == params("none")


def test_selective_keeps_inputs_and_what_convolutions_computed():
    images, first_stage, second_stage = 8 * 8 * 3, 8 * 8 * (4 + 4), 4 * 4 * 6
    expected = 2 * (images + first_stage + second_stage)
    assert kept_numbers("lpips", "selective") == expected
    assert kept_numbers("lpips", "none") > 3 * expected


def test_selective_forgets_attention():
    for name in ("denoiser", "estimator"):
        assert kept_numbers(name, "selective") < 0.35 * kept_numbers(name, "none")


def test_full_keeps_what_goes_into_blocks():
    """Three residual blocks, the last with a skip connection's channels, and two Swin layers."""
    channels = (48 + 96) + MODEL["width"] * (2 + 2 + 2 + 1)  # stem, blocks, layers, head
    of_the_time_embedding = 1000
    found = kept_numbers("denoiser", "full") - 16 * 16 * channels
    assert 0 <= found < of_the_time_embedding
    assert kept_numbers("estimator", "full") < 0.6 * kept_numbers("estimator", "selective")


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match="must be none, selective or full, not 'dots'"):
        rematerialize(SwinUNet, "dots")
