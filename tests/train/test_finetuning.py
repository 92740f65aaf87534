"""The page on fine-tuning: its command runs, from the built-in model, on pairs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from photos import draw_photo, enlarge, save

from upsr_jax.weights.model_folder import load_model

ROOT = Path(__file__).parents[2]


def test_the_command_of_the_page_trains_on_pairs(tmp_path):
    for i in range(3):
        lr = draw_photo(i, 40, 36)
        save(tmp_path / "data/own/lq" / f"{i}.png", lr)
        save(tmp_path / "data/own/gt" / f"{i}.png", enlarge(lr))
    page = (ROOT / "docs/finetuning.md").read_text()
    command = re.search(r"```bash\n(python -m upsr_jax\.main.*?)\n```", page, re.S)
    assert command
    python, *flags = shlex.split(command[1].replace("\\\n", " "))
    assert python == "python" and "finetune_x4" in flags
    small = [
        *("data.batch_size=1", "data.crop_size=64", "data.num_threads=1", "loss.lpips_weight=0.0"),
        *("train.steps=2", "train.eval_every=0", "train.keep_best=", "optimizer.muon=False"),
    ]
    run = subprocess.run(
        [sys.executable, *flags, *(f"--config.{change}" for change in small)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    stored, before = load_model(ROOT / "upsr_jax/assets/lite_x4")
    config, after = load_model(tmp_path / "runs/own/model")
    assert config == stored
    np.testing.assert_array_equal(
        after["estimator"]["conv_first"]["kernel"], before["estimator"]["conv_first"]["kernel"]
    )
    moved = after["denoiser"]["stem"]["kernel"] - before["denoiser"]["stem"]["kernel"]
    assert 0 < np.abs(moved).max() < 0.01
