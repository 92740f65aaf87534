"""From low-resolution images to results, through every part, against PyTorch's numbers."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from golden import golden, nhwc, relative_error, seeded, thin_image, weights
from tiny_model import changed

from configs import tiny
from upsr_jax.convert import denoiser_from_torch, estimator_from_torch
from upsr_jax.diffusion import respace
from upsr_jax.models.config import ModelConfig
from upsr_jax.ops import pixel_shuffle
from upsr_jax.upscale import restore as restore_module
from upsr_jax.upscale.restore import Restoration, Sampling, make_super_resolve, with_sampling

CONFIG = ModelConfig.of(changed(tiny.get_config(), dtype="float64"))

ONE_STEP = dataclasses.replace(CONFIG, sampler=CONFIG.sampler | {"method": "one_step"})


@pytest.fixture(scope="module")
def expected():
    return golden("sampling_tiny")


@pytest.fixture(scope="module")
def params():
    return {
        "denoiser": denoiser_from_torch(weights("unet_tiny"), tiny.get_config().model),
        "estimator": estimator_from_torch(weights("atd_tiny"), tiny.get_config().estimator),
    }


@pytest.fixture(scope="module")
def inputs(expected):
    """The golden's images, padded by reflection to 64 x 64, and its noise."""
    lr = nhwc(expected["lr"])
    padding = ((0, 0), (0, 64 - lr.shape[1]), (0, 64 - lr.shape[2]), (0, 0))
    return np.pad(lr, padding, "reflect"), nhwc(seeded("noise", (2, 3, 256, 256)))


def restore(params: dict, inputs: tuple, config: ModelConfig, fidelity: float = 0.0) -> Restoration:
    with jax.enable_x64(True):
        return jax.jit(make_super_resolve(config, fidelity))(params, *inputs)


@pytest.mark.parametrize(("method", "key"), [("ddim", "out"), ("one_step", "one_step_out")])
def test_result_is_pytorchs(params, inputs, expected, method, key):
    config = with_sampling(CONFIG, Sampling(method=method))
    if method == "one_step":
        # Which is no reason to begin anywhere but at the last step.
        config = dataclasses.replace(config, sampler=config.sampler | {"steps": 1})
    restored = restore(params, inputs, config)
    assert restored.image.dtype == np.float64
    assert relative_error(thin_image(restored.image[:, :160, :208]), nhwc(expected[key])) < 1e-7
    assert relative_error(thin_image(restored.estimate), nhwc(expected["estimate"])) < 1e-7
    assert relative_error(thin_image(restored.noise_weight), nhwc(expected["noise_weight"])) < 1e-7


def test_estimator_alone_gives_the_clipped_estimate(params, inputs, expected):
    config = dataclasses.replace(CONFIG, network="estimator")
    restored = restore({"estimator": params["estimator"]}, inputs, config)
    estimate = np.clip(nhwc(expected["estimate"]), -1, 1)
    assert relative_error(thin_image(restored.image), estimate) < 1e-7


def test_fidelity_blends_result_and_estimate(params, inputs, expected):
    config = with_sampling(CONFIG, Sampling(method="one_step"))
    restored = restore(params, inputs, config, fidelity=0.25)
    sample = nhwc(expected["one_step_out"])
    estimate = nhwc(expected["estimate"])[:, : sample.shape[1], : sample.shape[2]]
    blend = 0.75 * sample + 0.25 * estimate
    found = thin_image(restored.image[:, :160, :208])
    assert relative_error(found, np.clip(blend, -1, 1)) < 1e-7


@pytest.mark.parametrize("fidelity", [-0.1, 1.5])
def test_impossible_fidelity_is_refused(fidelity):
    with pytest.raises(ValueError, match=rf"fidelity is {fidelity}, but must lie in 0\.\.1"):
        Sampling(fidelity=fidelity)


def test_ancestral_sampling_is_pytorchs(params, inputs, expected, monkeypatch):
    step_noise = [seeded(f"step_noise_{t}", (2, 48, 64, 64)) for t in range(5)]
    step_noise = rearrange(step_noise, "t b c h w -> t b h w c")

    def draw_pytorchs(noise, t):
        assert noise.shape == inputs[1].shape
        return pixel_shuffle(jnp.asarray(step_noise)[t])

    monkeypatch.setattr(restore_module, "draw_again", draw_pytorchs)
    restored = restore(params, inputs, with_sampling(CONFIG, Sampling(method="ancestral")))
    unclipped = nhwc(expected["ancestral_out"])
    assert relative_error(thin_image(restored.image), np.clip(unclipped, -1, 1)) < 1e-7


def test_options_change_a_copy_of_the_config():
    before = copy.deepcopy(CONFIG)
    config = with_sampling(CONFIG, Sampling(steps=3, method="ancestral", min_noise=0.0))
    assert config.sampler == {"method": "ancestral", "steps": 3}
    assert config.prior == {"un": 0.1, "min_noise": 0.0}
    assert config.model == CONFIG.model
    assert before == CONFIG
    assert with_sampling(CONFIG, Sampling()) == before


@pytest.mark.parametrize(
    ("config", "options", "match"),
    [
        (CONFIG, dict(steps=6), "trained with 5 steps: choose 1 to 5 of them, not 6"),
        (CONFIG, dict(steps=0), "choose 1 to 5 of them, not 0"),
        (CONFIG, dict(method="euler"), "'euler': choose one of ddim, ancestral, one_step"),
        (CONFIG, dict(method="one_step", steps=2), "one_step makes 1 step: for 2 choose ddim"),
        (CONFIG, dict(min_noise=1.5), r"min_noise is 1.5, but must lie in 0\.\.1"),
        (
            dataclasses.replace(CONFIG, prior={"un": 0.0, "min_noise": 0.4}),
            dict(min_noise=0.5),
            "weighs no noise",
        ),
        (ONE_STEP, dict(steps=5), "trained to restore in one"),
        (ONE_STEP, dict(method="ddim"), "trained to restore in"),
        (
            dataclasses.replace(CONFIG, network="estimator"),
            dict(steps=5),
            "estimator alone: it doesn't sample",
        ),
    ],
)
def test_options_that_a_model_was_not_trained_for_are_refused(config, options, match):
    with pytest.raises(ValueError, match=match):
        with_sampling(config, Sampling(**options))


def test_the_spacing_is_told_only_where_steps_are_left_out():
    """So notes and evaluations from before it could be chosen stay as they are."""
    assert CONFIG.sampling() == {"method": "ddim", "steps": 5}
    assert ONE_STEP.sampling() == {"method": "one_step", "steps": 5}
    fewer = with_sampling(CONFIG, Sampling(steps=3)).sampling()
    assert fewer == {"method": "ddim", "steps": 3, "spacing": "released"}


@pytest.mark.parametrize(("spacing", "kept"), [("last", [0, 2, 4]), ("released", [0, 1, 3])])
def test_fewer_steps_are_spaced_as_the_config_says(monkeypatch, spacing, kept):
    seen = []
    monkeypatch.setattr(
        restore_module, "respace", lambda *given: seen.append(respace(*given)) or seen[0]
    )
    config = dataclasses.replace(CONFIG, sampler=CONFIG.sampler | {"spacing": spacing})
    make_super_resolve(with_sampling(config, Sampling(steps=3)))
    assert seen[0].timesteps.tolist() == kept


def test_one_step_may_be_asked_for_by_its_number():
    assert with_sampling(ONE_STEP, Sampling(steps=1, method="one_step")) == ONE_STEP
