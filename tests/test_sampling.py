"""From low-resolution images to results, through every part, against PyTorch's numbers."""

import jax
import numpy as np
import pytest
from einops import rearrange
from golden import golden, nhwc, relative_error, seeded, thin_image, weights

from configs import tiny
from upsr_jax.convert import denoiser_from_torch, estimator_from_torch
from upsr_jax.diffusion import Schedule
from upsr_jax.inference import Restoration, make_super_resolve
from upsr_jax.models.atd import ATD
from upsr_jax.models.swin_unet import SwinUNet
from upsr_jax.networks import apply
from upsr_jax.ops import pixel_shuffle
from upsr_jax.prior import make_prior
from upsr_jax.sampler import sample

CONFIG = tiny.get_config()
CONFIG.dtype = "float64"


@pytest.fixture(scope="module")
def expected():
    return golden("sampling_tiny")


@pytest.fixture(scope="module")
def params():
    return {
        "denoiser": denoiser_from_torch(weights("unet_tiny"), CONFIG.model),
        "estimator": estimator_from_torch(weights("atd_tiny"), CONFIG.estimator),
    }


@pytest.fixture(scope="module")
def inputs(expected):
    """The golden's images, padded by reflection to 64 x 64, and its noise."""
    lr = nhwc(expected["lr"])
    padding = ((0, 0), (0, 64 - lr.shape[1]), (0, 64 - lr.shape[2]), (0, 0))
    return np.pad(lr, padding, "reflect"), nhwc(seeded("noise", (2, 3, 256, 256)))


def restore(params: dict, inputs: tuple, method: str) -> Restoration:
    config = CONFIG.copy_and_resolve_references()
    config.sampler.method = method
    with jax.enable_x64(True):
        return jax.jit(make_super_resolve(config))(params, *inputs)


@pytest.mark.parametrize(("method", "key"), [("ddim", "out"), ("one_step", "one_step_out")])
def test_result_is_pytorchs(params, inputs, expected, method, key):
    restored = restore(params, inputs, method)
    assert restored.image.dtype == np.float64
    assert relative_error(thin_image(restored.image[:, :160, :208]), nhwc(expected[key])) < 1e-7
    assert relative_error(thin_image(restored.estimate), nhwc(expected["estimate"])) < 1e-7
    assert relative_error(thin_image(restored.noise_weight), nhwc(expected["noise_weight"])) < 1e-7


def test_estimator_alone_gives_the_clipped_estimate(params, inputs, expected):
    config = CONFIG.copy_and_resolve_references()
    config.network = "estimator"
    with jax.enable_x64(True):
        restored = jax.jit(make_super_resolve(config))({"estimator": params["estimator"]}, *inputs)
    estimate = np.clip(nhwc(expected["estimate"]), -1, 1)
    assert relative_error(thin_image(restored.image), estimate) < 1e-7


def test_ancestral_sampling_is_pytorchs(params, inputs, expected):
    step_noise = [seeded(f"step_noise_{t}", (2, 48, 64, 64)) for t in range(5)]
    step_noise = rearrange(step_noise, "t b c h w -> t b h w c")

    def restore_by_draws(params, lr, noise, step_noise):
        prior = make_prior(
            lambda image: apply(ATD(**CONFIG.estimator), params["estimator"], image),
            lr,
            **CONFIG.prior,
        )
        return sample(
            Schedule.create(**CONFIG.diffusion),
            lambda *inputs: apply(SwinUNet(**CONFIG.model), params["denoiser"], *inputs),
            prior,
            noise,
            "ancestral",
            lambda t: pixel_shuffle(step_noise[t]),
        )

    with jax.enable_x64(True):
        image = jax.jit(restore_by_draws)(params, *inputs, step_noise)
    unclipped = nhwc(expected["ancestral_out"])
    assert relative_error(thin_image(image), np.clip(unclipped, -1, 1)) < 1e-7
