"""Training runs from start to model folder, stops and goes on, and fails with clear words."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from photos import write_photos
from tiny_model import random_params

from configs import tiny
from upsr_jax import train
from upsr_jax.checkpoint import load_model, save_model
from upsr_jax.models.lpips import LPIPS
from upsr_jax.optimizer import create_optimizer, create_schedule
from upsr_jax.state import create_state
from upsr_jax.train import (
    init_params,
    load_frozen,
    make_loss_fn,
    make_train_step,
    train_and_evaluate,
)

SIZE = 64  # of a ground truth


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory) -> Iterator[None]:
    """Every run compiles the same programs: keep them, in a folder of this module."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ConfigDict:
    """The least that trains a denoiser: one level, small crops, three photographs."""
    folder = tmp_path_factory.mktemp("data")
    photos = str(write_photos(folder / "photos", 3))
    config = tiny.get_config()
    config.model.update(multipliers=(1,), num_res_blocks=(1,), swin_depth=1)
    config.estimator.update(depths=(2,))
    config.sampler.steps = 1
    config.data.update(folders=(photos,), batch_size=2, crop_size=SIZE, num_threads=2)
    config.pretrained.estimator = str(folder / "model")
    config.loss.lpips_weight = 0.0
    config.schedule.warmup_steps = 2
    config.train.update(
        steps=4, ema_decay=0.5, log_every=1, checkpoint_every=2, keep_checkpoints=9, eval_every=4
    )
    config.eval.update(gt=photos, lr="", crop_size=SIZE, max_images=2, pictures=2)
    save_model(folder / "model", config, random_params(config))
    return config


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """Copy a config with some values changed, named with `__` between the levels."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return config


def checkpoint(workdir: Path, step: int) -> Any:
    """Read a training checkpoint."""
    with ocp.CheckpointManager(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(step, args=ocp.args.StandardRestore())


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """The folder of a whole run. Copy it to go on from there."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_what_it_should(config, finished):
    lines = metrics(finished)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    rates = [line["train/learning_rate"] for line in lines if "train/loss" in line]
    assert rates == pytest.approx([0.5e-4, 0.75e-4, 1e-4, 1e-4])
    (evaluation,) = [line for line in lines if "eval/psnr_y" in line]
    assert evaluation["step"] == 4
    for metric in ("psnr_y", "ssim_y", "lpips_vgg"):
        assert np.isfinite(
            [evaluation[f"eval/{metric}"], evaluation[f"eval/bicubic_{metric}"]]
        ).all()
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["2", "4"]
    assert list((finished / "tensorboard").glob("events.*"))
    (picture,) = (finished / "pictures").iterdir()
    assert picture.name == "0000004_eval.png"
    assert cv2.imread(str(picture)).shape == (2 * SIZE, 6 * SIZE, 3)


def test_model_folder_holds_the_average_and_the_frozen_estimator(config, finished):
    stored_config, params = load_model(finished / "model")
    assert stored_config.model == config.model
    average = checkpoint(finished, 4)["ema_params"]
    jax.tree.map(np.testing.assert_array_equal, params["denoiser"], average)
    estimator = load_model(config.pretrained.estimator)[1]["estimator"]
    jax.tree.map(np.testing.assert_array_equal, params["estimator"], estimator)


def test_stop_and_resume_equals_uninterrupted(config, finished, workdir):
    """As after a crash between the checkpoints: the last two steps are made again."""
    shutil.rmtree(workdir / "checkpoints" / "4")
    shutil.rmtree(workdir / "model")
    train_and_evaluate(config, workdir)
    assert [line["step"] for line in metrics(workdir) if "train/loss" in line] == [1, 2, 3, 4, 3, 4]
    once, again = checkpoint(finished, 4), checkpoint(workdir, 4)
    assert int(again["step"]) == 4
    jax.tree.map(np.testing.assert_array_equal, again, once)
    before = checkpoint(finished, 2)
    assert not np.array_equal(before["params"]["stem"]["kernel"], once["params"]["stem"]["kernel"])
    jax.tree.map(
        np.testing.assert_array_equal,
        load_model(workdir / "model")[1],
        load_model(finished / "model")[1],
    )


def test_a_loss_that_is_not_finite_stops_training(config, workdir):
    """The learning rate blows the weights up after step 4."""
    model = (workdir / "model" / "sha256").read_text()
    config = changed(
        config, train__steps=8, train__checkpoint_every=1, schedule__learning_rate=1e38
    )
    with pytest.raises(FloatingPointError) as info:
        train_and_evaluate(config, workdir)
    message = str(info.value)
    assert "step 5 gave" in message
    assert "the last good checkpoint is that of step 4" in message
    named = json.loads(message[message.index("examples ") + 9 : message.index("; the last")])
    assert len(named) == 2
    assert set(named) <= {0, 1, 2}
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    assert (workdir / "model" / "sha256").read_text() == model


def test_a_bad_first_step_says_that_there_is_no_checkpoint(config, tmp_path):
    stored, params = load_model(config.pretrained.estimator)
    params["estimator"]["norm"]["scale"][:] = np.nan
    save_model(tmp_path / "model", stored, params)
    config = changed(config, pretrained__estimator=str(tmp_path / "model"))
    with pytest.raises(FloatingPointError, match="step 1 gave .* no checkpoint"):
        train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize("network", ["denoiser", "estimator"])
def test_loss_goes_down_on_one_batch(config, network):
    config = changed(config, network=network)
    generator = np.random.default_rng(0)
    lr = generator.uniform(-0.5, 0.5, (2, 16, 16, 3)).astype(np.float32)
    batch = {"lr": lr, "hr": lr.repeat(4, axis=1).repeat(4, axis=2)}
    optimizer = create_optimizer(create_schedule(3e-3, 5, 0, 0.0), **config.optimizer)
    train_step = jax.jit(make_train_step(make_loss_fn(config), optimizer, 0.9, seed=0))
    params = random_params(config)[network]
    state, frozen, losses = create_state(params, optimizer), load_frozen(config), []
    for _ in range(30):
        state, terms = train_step(state, frozen, batch)
        losses.append(float(terms["loss"]))
    print(losses)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_steps_draw_noise_and_timesteps_of_their_own(config):
    """Their losses differ although neither weights nor batch do; the same step's do not."""
    zeros = np.zeros((2, 16, 16, 3), np.float32)
    batch = {"lr": zeros, "hr": zeros.repeat(4, axis=1).repeat(4, axis=2)}
    optimizer = create_optimizer(create_schedule(0.0, 0, 0, 0.0), **config.optimizer)
    train_step = jax.jit(make_train_step(make_loss_fn(config), optimizer, 0.9, seed=0))
    start = create_state(random_params(config)["denoiser"], optimizer)
    frozen = load_frozen(config)
    first, terms = train_step(start, frozen, batch)
    _, other_terms = train_step(first, frozen, batch)
    _, same_terms = train_step(start, frozen, batch)
    assert float(terms["loss"]) == float(same_terms["loss"])
    assert float(terms["loss"]) != pytest.approx(float(other_terms["loss"]), rel=1e-3)


@pytest.mark.parametrize("released", [False, True])
def test_lpips_gets_signed_images_or_those_of_the_released_training(config, released, monkeypatch):
    seen = {}

    def fake_apply(network, params, *images):
        if isinstance(network, LPIPS):
            seen["images"] = images
            return jnp.zeros(2)
        return images[0].repeat(4, axis=1).repeat(4, axis=2)

    monkeypatch.setattr(train, "apply", fake_apply)
    config = changed(config, network="estimator", loss__lpips_weight=0.5)
    config.loss.released_lpips_range = released
    batch = {"lr": jnp.full((2, 4, 4, 3), 0.25), "hr": jnp.full((2, 16, 16, 3), -0.5)}
    make_loss_fn(config)({}, {"lpips": {}}, batch, jax.random.key(0))
    expected = (-0.5, -2.0) if released else (0.25, -0.5)
    for images, value in zip(seen["images"], expected, strict=True):
        np.testing.assert_allclose(images, np.full((2, 16, 16, 3), value), atol=1e-6)


def test_training_may_start_from_a_model(config):
    folder = config.pretrained.estimator
    params = init_params(changed(config, pretrained__denoiser=folder))
    jax.tree.map(np.testing.assert_array_equal, params, load_model(folder)[1]["denoiser"])


def test_missing_photographs_say_what_to_put_where(config, tmp_path):
    config = changed(config, data__folders=(str(tmp_path / "none"),))
    with pytest.raises(FileNotFoundError, match=r"none' does not exist. Put photographs there"):
        train_and_evaluate(config, tmp_path / "run")


def test_a_denoiser_needs_an_estimator(config, tmp_path):
    config = changed(config, pretrained__estimator="")
    with pytest.raises(ValueError, match=r"needs a trained estimator: set config\.pretrained"):
        train_and_evaluate(config, tmp_path / "run")


def test_weights_of_another_network_are_refused(config, tmp_path):
    other = changed(config, estimator__embed_dim=48)
    with pytest.raises(ValueError, match=r"embed_dim 24 instead of 48"):
        train_and_evaluate(other, tmp_path / "run")


def test_a_model_without_the_estimator_is_refused(config, tmp_path):
    save_model(tmp_path / "model", config, {"denoiser": random_params(config)["denoiser"]})
    config = changed(config, pretrained__estimator=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="holds no estimator, only denoiser"):
        train_and_evaluate(config, tmp_path / "run")
