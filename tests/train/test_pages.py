"""The pages on fine-tuning and distillation: their first commands run, at small size."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from photos import draw_photo, enlarge, save, write_photos
from tiny_model import random_params, smallest

from upsr_jax.models.config import ModelConfig
from upsr_jax.models.rules import flatten
from upsr_jax.weights.model_folder import load_model, save_model

ROOT = Path(__file__).parents[2]
SMALL = (
    *("data.batch_size=1", "data.crop_size=64", "data.num_threads=1", "loss.lpips_weight=0.0"),
    *("train.eval_every=0", "train.keep_best="),
)


def run_first_command(
    page: str, cwd: Path, changes: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run the first training command of a page, with some values of its config changed."""
    command = re.search(
        r"```bash\n(python -m upsr_jax\.main.*?)\n```", (ROOT / "docs" / page).read_text(), re.S
    )
    assert command
    python, *flags = shlex.split(command[1].replace("\\\n", " "))
    assert python == "python"
    return subprocess.run(
        [sys.executable, *flags, *(f"--config.{change}" for change in (*SMALL, *changes))],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def assert_same_estimator_and_moved_denoiser(after: dict, before: dict) -> None:
    np.testing.assert_array_equal(
        after["estimator"]["conv_first"]["kernel"], before["estimator"]["conv_first"]["kernel"]
    )
    moved = after["denoiser"]["stem"]["kernel"] - before["denoiser"]["stem"]["kernel"]
    assert 0 < np.abs(moved).max() < 0.01


def test_fine_tuning_trains_on_pairs(tmp_path):
    for i in range(3):
        lr = draw_photo(i, 40, 36)
        save(tmp_path / "data/own/lq" / f"{i}.png", lr)
        save(tmp_path / "data/own/gt" / f"{i}.png", enlarge(lr))
    run = run_first_command("finetuning.md", tmp_path, ["train.steps=2", "optimizer.muon=False"])
    assert run.returncode == 0, run.stderr
    stored, before = load_model(ROOT / "upsr_jax/assets/lite_x4")
    config, after = load_model(tmp_path / "runs/own/model")
    assert config == stored
    assert_same_estimator_and_moved_denoiser(after, before)


def test_distillation_makes_a_model_of_one_step(tmp_path):
    """Its teacher alone gives it estimator and first weights, and goes on being asked for."""
    write_photos(tmp_path / "data/imagenet/train", 3)
    config = smallest()
    params = random_params(config)
    teacher = "runs/realsr_x4/model"  # as the page has it
    save_model(tmp_path / teacher, ModelConfig.of(config), params)
    sizes = {"model": config.model.to_dict(), "estimator": config.estimator.to_dict()}
    small = [f"{name}={value}" for name, value in flatten(sizes).items()]
    small += ["dtype=float32", "schedule.warmup_steps=1", "schedule.learning_rate=1e-4"]
    run = run_first_command("distillation.md", tmp_path, [*small, "train.steps=2"])
    assert run.returncode == 0, run.stderr
    student, after = load_model(tmp_path / "runs/distil_x4/model")
    assert student.sampler["method"] == "one_step"
    assert student.model == ModelConfig.of(config).model
    assert_same_estimator_and_moved_denoiser(after, load_model(tmp_path / teacher)[1])

    params["denoiser"]["stem"]["bias"] += 1
    save_model(tmp_path / "another", ModelConfig.of(config), params)
    changed = [*small, "train.steps=3", "pretrained.teacher=another"]
    run = run_first_command("distillation.md", tmp_path, changed)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "config.pretrained.teacher = 'another' is not what this run began with" in last
    assert "Traceback" not in run.stderr
