"""Training runs from start to model folder, stops and goes on, and fails with clear words."""

import importlib.metadata
import json
import logging
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from photos import draw_photo, read, save, write_photos
from tiny_model import changed, random_params, smallest

from upsr_jax.data.pipeline import example_names, train_batches
from upsr_jax.evaluation import watch
from upsr_jax.evaluation.measure import Measured
from upsr_jax.files.whole import locked
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.checkpoints import export_model
from upsr_jax.train.loop import train_and_evaluate
from upsr_jax.train.sharding import create_mesh
from upsr_jax.train.state import create_sharded_state
from upsr_jax.train.step import make_loss_fn
from upsr_jax.weights.model_folder import load_model, save_model

SIZE = 64  # of a ground truth


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ConfigDict:
    """The least that trains a denoiser: one level, small crops, three photographs."""
    folder = tmp_path_factory.mktemp("data")
    photos = str(write_photos(folder / "photos", 3))
    config = smallest()
    config.sampler.steps = 1
    config.data.update(folders=(photos,), batch_size=2, crop_size=SIZE, num_threads=2)
    # A denoiser, too: to draw one takes longer to compile than to train.
    config.pretrained.update(estimator=str(folder / "model"), denoiser=str(folder / "model"))
    config.loss.lpips_weight = 0.0
    config.schedule.update(learning_rate=3e-3, warmup_steps=5)
    config.train.update(
        steps=30, ema_decay=0.9, log_every=1, checkpoint_every=15, keep_checkpoints=9, eval_every=30
    )
    config.eval.update(gt=photos, lr="", crop_size=SIZE, max_images=2, pictures=2)
    save_model(folder / "model", ModelConfig.of(config), random_params(config))
    return config


def checkpoint(workdir: Path, step: int) -> Any:
    """Read a training checkpoint: its items "state" and "model"."""
    with ocp.CheckpointManager(workdir / "checkpoints") as checkpoints:
        items = {name: ocp.args.StandardRestore() for name in ("state", "model")}
        return checkpoints.restore(step, args=ocp.args.Composite(**items))


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """Names of the programs that the run of `finished` compiled, or took from the cache."""
    return []


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory, compiled) -> Path:
    """The folder of a whole run. Copy it to go on from there."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    handler = logging.Handler()
    handler.emit = lambda record: compiled.extend(
        re.findall(r"^Compiling (?:jit\()?(\w+)", record.getMessage())
    )
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles():
        train_and_evaluate(config, workdir)
    logging.getLogger("jax").removeHandler(handler)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_what_it_should(config, finished):
    *training, evaluation = metrics(finished)
    assert [line["step"] for line in training] == list(range(1, 31))
    rates = [line["train/learning_rate"] for line in training]
    assert rates[5:] == pytest.approx([3e-3] * 25)
    assert evaluation["step"] == 30
    for metric in ("psnr_y", "ssim_y", "lpips_vgg"):
        assert np.isfinite(
            [evaluation[f"eval/{metric}"], evaluation[f"eval/bicubic_{metric}"]]
        ).all()
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["15", "30"]
    assert list((finished / "tensorboard").glob("events.*"))
    (picture,) = (finished / "pictures").iterdir()
    assert picture.name == "0000030_eval.png"
    assert read(picture).shape == (2 * SIZE, 6 * SIZE, 3)


def test_a_run_compiles_its_step_once_and_little_else(finished, compiled):
    """However many steps and pictures there are. A run took 12 when this was written."""
    assert compiled.count("train_step") == 1 and len(compiled) <= 12, compiled


def test_the_denoisers_loss_goes_down(finished):
    losses = [line["train/loss"] for line in metrics(finished)[:30]]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_model_folder_holds_the_average_and_the_frozen_estimator(config, finished):
    stored_config, params = load_model(finished / "model")
    assert stored_config == ModelConfig.of(config)
    average = checkpoint(finished, 30)["model"]["denoiser"]
    jax.tree.map(np.testing.assert_array_equal, params["denoiser"], average)
    estimator = load_model(config.pretrained.estimator)[1]["estimator"]
    jax.tree.map(np.testing.assert_array_equal, params["estimator"], estimator)


def test_model_folder_is_what_export_writes_of_the_last_checkpoint(finished, tmp_path):
    assert export_model(finished, tmp_path / "model") == 30
    for path in (tmp_path / "model").iterdir():
        assert path.read_bytes() == (finished / "model" / path.name).read_bytes()


def test_stop_and_resume_equals_uninterrupted(config, finished, workdir):
    """As after a crash just before the second checkpoint."""
    shutil.rmtree(workdir / "checkpoints" / "30")
    shutil.rmtree(workdir / "model")
    train_and_evaluate(config, workdir)
    assert [line["step"] for line in metrics(workdir)] == [*range(1, 31), 30]  # the evaluation's
    once, again, halfway = (
        checkpoint(*place) for place in ((finished, 30), (workdir, 30), (finished, 15))
    )
    for item in ("state", "model"):
        jax.tree.map(np.testing.assert_array_equal, again[item], once[item])
    kernels = [each["state"]["params"]["stem"]["kernel"] for each in (once, halfway)]
    assert not np.array_equal(*kernels)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_model(workdir / "model")[1],
        load_model(finished / "model")[1],
    )


def test_a_stop_ends_the_last_evaluation_and_the_next_call_makes_up_for_it(
    config, finished, workdir, monkeypatch
):
    measure_all, measured = watch.measure_all, []

    def measure_stopped(*arguments):
        for item in measure_all(*arguments):
            assert isinstance(item, Measured)
            measured.append(item.example.name)
            signal.raise_signal(signal.SIGTERM)
            yield item

    shutil.rmtree(workdir / "checkpoints" / "30")
    shutil.rmtree(workdir / "model")
    with monkeypatch.context() as patch:
        patch.setattr(watch, "measure_all", measure_stopped)
        train_and_evaluate(config, workdir)
    assert len(measured) == 1 < config.eval.max_images
    assert [line["step"] for line in metrics(workdir)] == list(range(1, 31))
    assert (workdir / "checkpoints" / "30").exists()
    assert not (workdir / "finished").exists() and not (workdir / "model").exists()

    train_and_evaluate(config, workdir)
    evaluation, expected = metrics(workdir)[-1], metrics(finished)[-1]
    assert evaluation | {"time": 0} == expected | {"time": 0}
    assert (workdir / "finished").read_text() == "30\n"
    assert (workdir / "model").exists()


def test_two_sets_each_with_its_metrics_and_the_best_by_a_mix(config, tmp_path, monkeypatch):
    """One has no ground truth, and a stand-in for pyiqa, which finds its pictures to get worse."""
    scores, pictures = iter([9.0, 8.0, 3.0, 2.0]), []

    class Metric:
        metric_mode, lower_better = "NR", False

        def __call__(self, file):
            pictures.append(read(file).shape)
            return next(scores)

    stand_in = SimpleNamespace(create_metric=lambda name, device: Metric())
    monkeypatch.setitem(sys.modules, "pyiqa", stand_in)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    for i in range(2):
        save(tmp_path / "lr" / f"{i}.png", draw_photo(i, 48, 48))
    config = changed(config, train__steps=6, train__checkpoint_every=2, train__eval_every=2)
    truth = dict(metrics=("psnr_y",), max_images=1)
    without = dict(gt="", lr=str(tmp_path / "lr"), metrics=("niqe",), pyiqa=("musiq",))
    config.eval.sets = dict(truth=truth, without=without)
    best = "truth/psnr_y=0.01,without/pyiqa:musiq"
    config.train.update(pyiqa_every=2, keep_checkpoints=1, keep_every=0, keep_best=best)
    train_and_evaluate(config, tmp_path / "run")
    rows = {}
    for line in metrics(tmp_path / "run"):
        rows.setdefault(line["step"], {}).update(line)
    assert [step for step in rows if "truth/psnr_y" in rows[step]] == [2, 4, 6]
    assert [step for step in rows if np.isfinite(rows[step].get("without/niqe", np.nan))] == [
        2,
        4,
        6,
    ]
    musiq = {step: rows[step].get("without/pyiqa:musiq") for step in (2, 4, 6)}
    assert musiq == {2: None, 4: 8.5, 6: 2.5}  # of every second evaluation, and of the last
    assert pictures == [(192, 192, 3)] * 4
    assert not any("truth/niqe" in row or "eval/psnr_y" in row for row in rows.values())
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "6"}
    names = {path.name for path in (tmp_path / "run" / "pictures").iterdir()}
    assert names == {
        f"000000{step}_{name}.png" for step in (2, 4, 6) for name in ("truth", "without")
    }


def test_without_pyiqa_a_run_that_asks_for_it_does_not_begin(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"musiq needs pyiqa, .* pip install pyiqa"):
        train_and_evaluate(changed(config, eval__pyiqa=("musiq",)), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_of_more_steps_is_not_taken_for_finished(config, workdir):
    with pytest.raises(ValueError, match=r"has done 30 steps, more than config\.train\.steps = 20"):
        train_and_evaluate(changed(config, train__steps=20), workdir)


@pytest.fixture
def config_of_nan(config, tmp_path) -> ConfigDict:
    """The config with an estimator that spoils the loss."""
    params = load_model(config.pretrained.estimator)[1]
    params["estimator"]["norm"]["scale"][:] = 3e38  # finite, but not what comes of it
    save_model(tmp_path / "nan", ModelConfig.of(config), params)
    return changed(config, pretrained__estimator=str(tmp_path / "nan"))


def make_spoiled(is_bad):
    """Build a `make_loss_fn` whose loss is not finite for batches that `is_bad` tells."""

    def make_spoiled_loss_fn(config, remat):
        loss_fn = make_loss_fn(config, remat)

        def spoiled(params, frozen, batch, keys):
            loss, terms = loss_fn(params, frozen, batch, keys)
            return loss, terms | {"loss": jnp.where(is_bad(batch), jnp.nan, loss)}

        return spoiled

    return make_spoiled_loss_fn


def test_a_loss_that_stays_not_finite_stops_training(config, workdir):
    before = (workdir / "model" / "sha256").read_text()
    config = changed(config, train__steps=40, train__checkpoint_every=1, train__keep_best="")
    config.train.max_bad_steps = 2
    with pytest.raises(FloatingPointError) as info:
        train_and_evaluate(config, workdir, make_loss_fn=make_spoiled(lambda batch: True))
    message = str(info.value)
    assert "step 33 gave {" in message
    assert "'loss': nan" in message
    assert "bad step 3 in a row, config.train.max_bad_steps is 2" in message
    assert "the last checkpoint is that of step 30" in message
    batches = train_batches(config.data, config.degradation, config.seed, 32, 0, 1)
    assert f"on {', '.join(example_names(config.data, next(batches)['index']))};" in message
    batches.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["15", "30"]
    assert (workdir / "model" / "sha256").read_text() == before


def test_a_bad_step_is_skipped_and_what_is_asked_for_changes(config, workdir, caplog):
    batches = train_batches(config.data, config.degradation, config.seed, 31, 0, 1)
    pixel = next(batches)["hr"][0, 0, 0, 0]
    batches.close()
    make_bad = make_spoiled(lambda batch: batch["hr"][0, 0, 0, 0] == pixel)
    config = changed(config, train__steps=33, train__checkpoint_every=1, train__eval_every=0)
    config.train.keep_best = ""
    config.schedule.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    with pytest.raises(ValueError, match=r"allow_changes to \('schedule', 'optimizer.clip_norm'\)"):
        train_and_evaluate(config, workdir, make_loss_fn=make_bad)
    config.train.allow_changes = ("schedule", "optimizer.clip_norm")
    with caplog.at_level(logging.INFO, "upsr_jax"):
        train_and_evaluate(config, workdir, make_loss_fn=make_bad)
    change = "optimizer.clip_norm was 0.0 and is now 1.0; schedule.learning_rate was 0.003 and is"
    assert f"changed after step 30: {change} now 0.001" in caplog.text
    assert "skipped: step 32 gave {'grad_norm': " in caplog.text and "photos/" in caplog.text
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [
        *("15", "30", "31", "33")
    ]
    meta = json.loads((workdir / "checkpoints" / "33" / "meta" / "metadata").read_text())
    assert meta["skipped"] == 1
    assert meta["history"] == [f"after step 30: {change} now 0.001"]
    lines = metrics(workdir)[-3:]
    assert [line["train/skipped_steps"] for line in lines] == [0, 1, 1]
    assert [line["train/learning_rate"] for line in lines] == pytest.approx([1e-3] * 3)
    assert ["train/loss" in line for line in lines] == [True, False, True]
    config.train.allow_changes = ()
    with caplog.at_level(logging.INFO, "upsr_jax"):
        train_and_evaluate(config, workdir)
    assert "nothing to do" in caplog.text  # the newest checkpoint is of this config


def test_degradation_on_the_device_trains_resumes_and_is_not_changed_for_the_hosts(
    config, tmp_path
):
    changes = dict(data__degrade_on="device", degradation__simulated_jpeg=True)
    config = changed(config, train__steps=4, train__checkpoint_every=2, train__eval_every=0)
    config.train.keep_best = ""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_and_evaluate(changed(config, **changes), whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    train_and_evaluate(changed(config, **changes), resumed)
    once, again = (checkpoint(folder, 4)["state"] for folder in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, again, once)
    with pytest.raises(ValueError, match=r"data\.degrade_on was device and is now host"):
        train_and_evaluate(config, whole)


def test_a_bucket_is_no_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^gs://bucket/run is a URL, and only folders are"):
        train_and_evaluate(config, "gs://bucket/run")
    config = changed(config, data__folders=("s3://bucket/photos",))
    with pytest.raises(ValueError, match=r"^s3://bucket/photos is a URL"):
        train_and_evaluate(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_the_workdir_is_refused(config, tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another process is writing to"):
        train_and_evaluate(config, tmp_path)


def test_without_a_checkpoint_the_error_says_so(config_of_nan, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 11 gave .* there is no checkpoint yet"):
        train_and_evaluate(config_of_nan, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_training_starts_from_a_model_or_from_the_seed(config):
    mesh = create_mesh(-1, 1)
    params = load_model(config.pretrained.denoiser)[1]
    state = create_sharded_state(config, optax.sgd(0.1), mesh)
    jax.tree.map(np.testing.assert_array_equal, state.params, params["denoiser"])
    config = changed(config, network="estimator", pretrained__estimator="", estimator__depths=(1,))
    first, again, other = (
        create_sharded_state(changed(config, seed=seed), optax.sgd(0.1), mesh).params
        for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [tree["conv_first"]["kernel"] for tree in (first, other)]
    assert not np.allclose(*kernels)


def test_what_fits_is_taken_from_a_model_of_other_sizes(config, caplog):
    mesh = create_mesh(-1, 1)
    # A wider head, a shallower network: some arrays have other shapes, some have no counterpart.
    other = changed(config, network="estimator", estimator__depths=(1,), estimator__mlp_ratio=2)
    with pytest.raises(ValueError, match=r"has another config\.estimator: depths"):
        create_sharded_state(other, optax.sgd(0.1), mesh)
    other.pretrained.strict = False
    with caplog.at_level(logging.INFO, "upsr_jax"):
        params = create_sharded_state(other, optax.sgd(0.1), mesh).params
    stored = load_model(config.pretrained.estimator)[1]["estimator"]
    found: Any = flatten_dict(stored, sep="/")
    taken: Any = flatten_dict(params, sep="/")
    same = {n for n in taken if n in found and found[n].shape == taken[n].shape}
    assert {*taken} > same
    assert all(np.array_equal(taken[name], found[name]) for name in same)
    told = {message.split()[2] for message in caplog.messages if message.startswith("drawn anew")}
    assert told == {*taken} - same
    out = {message.split()[2] for message in caplog.messages if message.startswith("left out")}
    assert out == {*found} - same
    assert f"{len(same)} of {len(taken)} arrays of the estimator are from" in caplog.text
    other.estimator.embed_dim = 48
    other.pretrained.estimator = config.data.folders[0]
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        create_sharded_state(other, optax.sgd(0.1), mesh)


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
    save_model(
        tmp_path / "model", ModelConfig.of(config), {"denoiser": random_params(config)["denoiser"]}
    )
    config = changed(config, pretrained__estimator=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="holds no estimator, only denoiser"):
        train_and_evaluate(config, tmp_path / "run")
