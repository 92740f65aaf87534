"""One update: what it draws, that it learns, and that neither parts nor places change it."""

import dataclasses
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from photos import enlarge
from tiny_model import random_params, smallest

from upsr_jax.diffusion import Schedule
from upsr_jax.metrics import ssim_loss
from upsr_jax.models.atd import ATD
from upsr_jax.models.build import apply
from upsr_jax.models.lpips import LPIPS
from upsr_jax.train import step as train_step_module
from upsr_jax.train.optimizer import create_optimizer, create_schedule
from upsr_jax.train.sharding import create_mesh
from upsr_jax.train.state import create_state
from upsr_jax.train.step import make_loss_fn, make_train_step, split_microbatches
from upsr_jax.weights.published import load_lpips_vgg


@pytest.fixture
def config() -> ConfigDict:
    config = smallest()
    config.loss.lpips_weight = 0.0
    return config


def batch_of(*rows: float) -> dict[str, jax.Array]:
    """A batch whose images hold one number each."""
    images = jnp.asarray(rows)[:, None, None, None] * jnp.ones((1, 4, 4, 3))
    return {"hr": images, "stop": jnp.zeros(len(rows), bool)}


def make_step(loss_fn, optimizer=None, seed=0, microbatches=1):
    return make_train_step(
        loss_fn, optimizer or optax.sgd(0.1), 0.9, seed, microbatches, create_mesh(-1, 1)
    )


def test_an_update_that_spoils_the_parameters_shows_in_its_own_step():
    """Their loss would be that of the next step, after a checkpoint."""

    def loss_fn(params, frozen, batch, keys):
        loss = jnp.sum(params["w"] ** 2)
        return loss, {"loss": loss}

    optimizer = optax.sgd(jnp.inf)
    state = create_state({"w": jnp.ones(2)}, optimizer)
    _, terms = make_step(loss_fn, optimizer)(state, {}, batch_of(0.0))
    assert (float(terms["loss"]), float(terms["grad_norm"])) == pytest.approx((2, 8**0.5))
    assert not np.isfinite(terms["param_norm"])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(where):
    def loss_fn(params, frozen, batch, keys):
        loss = jnp.sum(params["w"] * batch["hr"].mean())
        term = loss if where == "gradient" else loss / jnp.where(batch["hr"].mean() > 5, 0, 1)
        scale = jnp.inf if where == "gradient" else 1.0
        return jnp.where(batch["hr"].mean() > 5, scale, 1) * loss, {"loss": term}

    optimizer = create_optimizer(create_schedule(0.1, 2, 0, 0.0), 0.9, 0.99, 0.1, 1.0, muon=False)
    step = make_step(loss_fn, optimizer)
    first, terms = step(create_state({"w": jnp.ones(2)}, optimizer), {}, batch_of(1.0))
    assert not terms["skipped"]
    second, terms = step(first, {}, batch_of(9.0))
    assert terms["skipped"] and int(second.step) == 2
    assert np.isfinite(terms["param_norm"])
    expected = dataclasses.replace(first, step=second.step)
    jax.tree.map(np.testing.assert_array_equal, second, expected)
    third, terms = step(second, {}, batch_of(2.0))
    assert not terms["skipped"]
    assert (np.asarray(third.params["w"]) < np.asarray(first.params["w"])).all()


def test_the_estimators_loss_goes_down_on_one_batch(config):
    config.network = "estimator"
    lr = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16, 16, 3)).astype(np.float32)
    hr = enlarge(lr)
    batch = {"lr": lr, "hr": hr, "stop": np.zeros(2, bool)}
    optimizer = create_optimizer(create_schedule(3e-3, 5, 0, 0.0), **config.optimizer)
    train_step = jax.jit(make_step(make_loss_fn(config, "none"), optimizer))
    state, losses = create_state(random_params(config)["estimator"], optimizer), []
    for _ in range(30):
        state, terms = train_step(state, {}, batch)
        losses.append(float(terms["loss"]))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def noise_loss(params, frozen, batch, keys):
    """Draw one number for each image; the gradient is their mean."""
    noise = jax.vmap(jax.random.normal)(keys) * batch["hr"][:, 0, 0, 0]
    loss = params["w"] * jnp.mean(noise)
    return loss, {"loss": loss}


def test_every_step_seed_and_image_has_a_key_of_its_own():
    def loss(step: int, seed: int, *rows: float) -> float:
        state = create_state({"w": jnp.ones(())}, optax.sgd(0.1))
        state = dataclasses.replace(state, step=jnp.int32(step))
        return float(make_step(noise_loss, seed=seed)(state, {}, batch_of(*rows))[1]["loss"])

    assert loss(7, 0, 1.0) == loss(7, 0, 1.0)
    draws = (loss(7, 0, 1.0), loss(8, 0, 1.0), loss(7, 1, 1.0), 2 * loss(7, 0, 0.0, 1.0))
    assert len(set(draws)) == 4
    assert 2 * loss(7, 0, 1.0, 0.0) == draws[0]  # whatever the other images are


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_change_nothing_but_rounding(microbatches):
    def loss_fn(params, frozen, batch, keys):
        loss, terms = noise_loss(params, frozen, batch, keys)
        loss += jnp.mean(params["v"] ** 2 * batch["hr"])
        return loss, terms | {"loss": loss, "hr_by_t": jnp.mean(batch["hr"], (0, 1, 2))}

    optimizer = optax.sgd(0.1)
    state = create_state({"w": jnp.ones(()), "v": jnp.array(2.0)}, optimizer)
    batch = batch_of(*np.random.default_rng(0).uniform(0.5, 1.5, 8))
    batch["stop"] = batch["stop"].at[3].set(True)
    once = make_step(loss_fn, optimizer)(state, {}, batch)
    parts = make_step(loss_fn, optimizer, microbatches=microbatches)(state, {}, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), parts, once)
    assert once[1]["stop"] and parts[1]["stop"]


def test_split_microbatches_gives_each_row_to_one_part():
    rows = split_microbatches(jnp.arange(12).reshape(6, 2), 3)
    assert rows.shape == (3, 2, 2)
    np.testing.assert_array_equal(np.sort(rows.ravel()), np.arange(12))


@pytest.mark.parametrize("method", ["ddim", "one_step"])
def test_timesteps_are_drawn_evenly_and_noise_is_normal(config, method, monkeypatch):
    """With black images the state is noise alone, of the least weight."""
    seen = {}

    def fake_apply(network, params, *inputs):
        if isinstance(network, ATD):
            return enlarge(inputs[0])
        seen.update(x=np.asarray(inputs[0]), t=np.asarray(inputs[1]))
        return jnp.zeros((1000, 4, 4, 3))

    monkeypatch.setattr(train_step_module, "apply", fake_apply)
    config.sampler.method = method
    batch = {"lr": jnp.zeros((1000, 1, 1, 3)), "hr": jnp.zeros((1000, 4, 4, 3))}
    keys = jax.random.split(jax.random.key(0), 1000)
    _, terms = make_loss_fn(config, "none")({}, {"estimator": {}}, batch, keys)
    counts = np.bincount(seen["t"], minlength=5)
    np.testing.assert_allclose(terms["share_by_t"], counts / 1000, rtol=1e-6)
    if method == "one_step":  # it is never asked for another step than the last
        np.testing.assert_array_equal(counts, [0, 0, 0, 0, 1000])
    else:
        assert counts.shape == (5,)
        assert np.abs(counts - 200).max() < 4 * np.sqrt(1000 * 0.2 * 0.8)
    eta = Schedule.create(**config.diffusion).etas[seen["t"]][:, None, None, None]
    noise = seen["x"] * np.sqrt(eta * 2.5**2 * 0.3 + 0.25) / (2.5 * np.sqrt(eta) * 0.4)
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.02)
    assert len(np.unique(noise[:, 0, 0, 0])) > 990


def test_terms_by_timestep_add_up_to_the_mean(config, monkeypatch):
    """Images of the value v are predicted as 0: their squared error is v²."""
    seen = {}

    def fake_apply(network, params, *inputs):
        if isinstance(network, ATD):
            return enlarge(inputs[0])
        seen.update(t=np.asarray(inputs[1]))
        return jnp.zeros((20, 4, 4, 3))

    monkeypatch.setattr(train_step_module, "apply", fake_apply)
    values = np.linspace(0.1, 0.9, 20)
    batch = {"lr": jnp.zeros((20, 1, 1, 3)), "hr": batch_of(*values)["hr"]}
    keys = jax.random.split(jax.random.key(0), 20)
    loss, terms = make_loss_fn(config, "none")({}, {"estimator": {}}, batch, keys)
    expected = [np.sum(values[seen["t"] == t] ** 2) / 20 for t in range(5)]
    np.testing.assert_allclose(terms["mse_by_t"], expected, rtol=1e-5)
    assert float(loss) == pytest.approx(np.mean(values**2), rel=1e-5)


def images_for_lpips(config, monkeypatch, lr, hr):
    """What LPIPS gets of an estimate, which is the pixels of `lr`, and of the ground truth."""
    seen = {}

    def fake_apply(network, params, *images):
        if isinstance(network, LPIPS):
            seen["images"] = images
            return jnp.zeros(len(hr))
        return enlarge(images[0])

    monkeypatch.setattr(train_step_module, "apply", fake_apply)
    config.network = "estimator"
    config.loss.lpips_weight = 0.5
    keys = jax.random.split(jax.random.key(0), len(hr))
    make_loss_fn(config, "none")({}, {"lpips": {}}, {"lr": lr, "hr": hr}, keys)
    return seen["images"]


@pytest.mark.parametrize("released", [False, True])
def test_lpips_gets_signed_images_or_those_of_the_released_training(config, released, monkeypatch):
    config.loss.released_lpips_range = released
    lr, hr = jnp.full((2, 4, 4, 3), 0.25), jnp.full((2, 16, 16, 3), -0.5)
    expected = (-0.5, -2.0) if released else (0.25, -0.5)
    images = images_for_lpips(config, monkeypatch, lr, hr)
    for image, value in zip(images, expected, strict=True):
        np.testing.assert_allclose(image, np.full((2, 16, 16, 3), value), atol=1e-6)


def test_ssim_gets_images_in_unit_range_and_its_weight(config, monkeypatch):
    monkeypatch.setattr(train_step_module, "apply", lambda network, params, image: enlarge(image))
    config.network = "estimator"
    config.loss.ssim_weight = 2.0
    rng = np.random.default_rng(0)
    lr, hr = (jnp.asarray(rng.uniform(-1, 1, (2, size, size, 3)), jnp.float32) for size in (4, 16))
    keys = jax.random.split(jax.random.key(0), 2)
    loss, terms = make_loss_fn(config, "none")({}, {}, {"lr": lr, "hr": hr}, keys)
    expected = jnp.mean(ssim_loss((enlarge(lr) + 1) / 2, (hr + 1) / 2))
    assert terms["ssim_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert loss == pytest.approx(float(terms["l1"] + 2 * expected), rel=1e-5)


@pytest.mark.parametrize("jitter", [False, True])
def test_lpips_gets_both_images_moved_alike_or_as_they_are(config, jitter, monkeypatch):
    config.loss.lpips_jitter = jitter
    rng = np.random.default_rng(0)
    lr, hr = (rng.uniform(-1, 1, (100, size, size, 3)).astype(np.float32) for size in (2, 8))
    images = images_for_lpips(config, monkeypatch, jnp.asarray(lr), jnp.asarray(hr))
    originals = enlarge(lr), hr
    counts = np.zeros((2, 2), int)
    for row, (down, right) in product(range(len(hr)), np.ndindex(2, 2)):
        border = ((down, 0), (right, 0), (0, 0))
        counts[down, right] += all(
            np.allclose(got[row], np.pad(was[row], border, mode="reflect")[:8, :8], atol=1e-6)
            for got, was in zip(images, originals, strict=True)
        )
    assert counts.sum() == 100  # one place each
    assert counts.min() > 10 if jitter else counts[0, 0] == 100


def test_the_gradient_of_lpips_has_a_type_of_its_own(config, monkeypatch):
    """The estimate, which networks give in 0..1, is the parameters themselves."""

    def fake_apply(network, params, *inputs):
        return apply(network, params, *inputs) if isinstance(network, LPIPS) else params

    monkeypatch.setattr(train_step_module, "apply", fake_apply)
    lpips = load_lpips_vgg()
    rng = np.random.default_rng(0)
    hr = jnp.asarray(rng.uniform(-0.8, 0.8, (1, 32, 32, 3)), jnp.float32)
    unit = (hr + jnp.asarray(rng.uniform(-0.1, 0.1, hr.shape), jnp.float32) + 1) / 2
    batch, keys = {"lr": jnp.zeros((1, 8, 8, 3)), "hr": hr}, jax.random.split(jax.random.key(0), 1)
    config.network, config.dtype = "estimator", "bfloat16"

    def gradient_of(weight: float, dtype: str) -> np.ndarray:
        config.loss.update(lpips_weight=weight, lpips_dtype=dtype)
        loss_fn = make_loss_fn(config, "none")
        gradient, _ = jax.jit(jax.grad(loss_fn, has_aux=True))(unit, {"lpips": lpips}, batch, keys)
        return np.asarray(gradient) / 2

    of_lpips = jax.jit(jax.grad(lambda image, lpips, hr: apply(LPIPS(), lpips, image, hr)[0]))
    expected = np.asarray(of_lpips(2 * unit - 1, lpips, hr))
    of_l1 = gradient_of(0.0, "float32")
    exact, rounded = (gradient_of(1.0, dtype) - of_l1 for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact, expected, atol=1e-4 * np.abs(expected).max())
    cosine = np.vdot(rounded, expected) / np.linalg.norm(rounded) / np.linalg.norm(expected)
    assert 0.9 < cosine < 0.9995
