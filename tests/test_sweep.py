"""The table of ablations: each row is a config that trains, and the command runs them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sweep
from photos import write_photos
from tiny_model import random_params, smallest

from configs import released_x4, tiny
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.config import check_config
from upsr_jax.train.step import make_loss_fn
from upsr_jax.weights.model_folder import load_model, save_model

ROOT = Path(__file__).parent.parent


def with_changes(config, changes):
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a word or a path
            value = text
        config.update_from_flattened_dict({name: value})
    return config


@pytest.mark.parametrize("name", [*sweep.ROWS, *sweep.AT_TEST])
def test_a_row_is_a_config_and_stands_in_the_page(name):
    changes = (sweep.ROWS | sweep.AT_TEST)[name]
    config = with_changes(released_x4.get_config(), changes)
    check_config(config)
    assert (config.to_dict() == released_x4.get_config().to_dict()) == (name == "baseline")
    page = (ROOT / "docs/ablations.md").read_text()
    assert f"`{name}`" in page or name in sweep.AT_TEST
    for change in changes:
        assert change.partition("=")[0] in page


def test_rows_differ_in_what_the_network_sees_and_not_in_its_shape():
    shapes = set()
    batch = {"lr": jnp.zeros((1, 16, 16, 3)), "hr": jnp.zeros((1, 64, 64, 3))}
    for name in ("baseline", "no_estimate_in_condition", "no_estimator"):
        config = with_changes(tiny.get_config(), sweep.ROWS[name])
        config.loss.lpips_weight = 0.0
        params = random_params(config)
        frozen = {} if name == "no_estimator" else {"estimator": params["estimator"]}
        loss_fn = make_loss_fn(config, "none")
        keys = jax.random.split(jax.random.key(0), 1)
        loss, _ = jax.eval_shape(loss_fn, params["denoiser"], frozen, batch, keys)
        shapes.add((loss.shape, str(jax.tree.map(np.shape, params["denoiser"]))))
    assert len(shapes) == 1


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/sweep.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_one_command_trains_and_evaluates_rows_and_goes_on(tmp_path):
    photos = write_photos(tmp_path / "photos", 2)
    config = smallest()
    save_model(tmp_path / "model", ModelConfig.of(config), random_params(config))
    flags = [
        *(f"--out={tmp_path / 'out'}", "--config=tiny"),
        *("--config.model.multipliers=(1,)", "--config.model.num_res_blocks=(1,)"),
        *("--config.model.swin_depth=1", "--config.estimator.depths=(2,)"),
        *(f"--config.data.folders=('{photos}',)", "--config.data.batch_size=2"),
        *("--config.data.crop_size=64", "--config.loss.lpips_weight=0.0", "--config.train.steps=1"),
        *("--config.train.keep_best=", "--config.train.eval_every=0", "--config.eval.lr="),
        *(f"--config.eval.gt={photos}", "--config.eval.crop_size=64", "--config.eval.max_images=1"),
        *("--config.eval.tile=128", "--config.eval.metrics=('psnr_y',)"),
        *(f"--config.pretrained.{part}={tmp_path / 'model'}" for part in ("estimator", "denoiser")),
    ]
    done = run(*flags, "--rows=no_weighting,no_estimator")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in done.stdout
    head, _, *lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert head == ["row", "config", "psnr_y"]
    assert [line[:2] for line in lines] == [
        ["no_weighting", "`prior.un=0.0`"],
        ["no_estimator", "`prior.estimate=bicubic`"],
    ]
    assert all(0 < float(line[2]) < 60 for line in lines)
    config, params = load_model(tmp_path / "out" / "no_estimator" / "model")
    assert config.prior["estimate"] == "bicubic" and params.keys() == {"denoiser"}

    rows = sorted(tmp_path.glob("out/*/row.json"))
    before = [path.stat().st_mtime_ns for path in rows]
    again = run(*flags, "--rows=no_weighting,no_estimator")
    assert again.returncode == 0 and table in again.stdout
    assert [path.stat().st_mtime_ns for path in rows] == before
    other = run(*flags, "--rows=no_weighting", "--config.seed=1")
    assert other.returncode == 1
    assert "out/no_weighting was done with other flags: choose another --out" in other.stderr
    assert "Traceback" not in other.stderr


def test_what_can_not_be_is_one_sentence(tmp_path):
    for flags, message in (
        (["--rows=nothing"], "there is no row nothing: choose some of baseline, "),
        ([f"--estimator={tmp_path}"], "config.json is missing: give --estimator a model folder"),
    ):
        failed = run(f"--out={tmp_path / 'out'}", *flags)
        assert failed.returncode == 1 and message in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_task_of_an_array_does_its_row(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert sweep.choose(None, sweep.ROWS) == [[*sweep.ROWS][2]]
    assert sweep.choose("one_step,baseline,no_lpips", sweep.ROWS) == ["no_lpips"]
    with pytest.raises(ValueError, match=r"task 2 has no row: give sbatch --array=0-0"):
        sweep.choose("baseline", sweep.ROWS)


def test_another_estimator_brings_its_sizes():
    folder = ROOT / "upsr_jax/assets/lite_x4"
    config = with_changes(tiny.get_config(), sweep.of_estimator(folder))
    stored = json.loads((folder / "config.json").read_text())["estimator"]
    assert json.loads(json.dumps(config.estimator.to_dict())) == stored
    assert config.pretrained.estimator == str(folder)
