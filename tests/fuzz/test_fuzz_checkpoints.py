"""Whatever happens to a file of a checkpoint: it comes back as it was, or the one before does.

MUTANTS=20000 .venv/bin/pytest tests/fuzz/test_fuzz_checkpoints.py runs for longer.
"""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mutants import mutate
from small_checkpoints import assert_same, restored, save_steps, state_after

from configs import tiny

MUTANTS = int(os.environ.get("MUTANTS", 60))
# Where an array can't be read, orbax leaves tasks of a closed event loop behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def damage(path: Path, rng: np.random.Generator) -> None:
    """Remove the file, or change its bytes."""
    if rng.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(mutate(path.read_bytes(), rng))


def test_a_damaged_checkpoint_is_restored_as_it_was_or_the_one_before(tmp_path, caplog):
    config = tiny.get_config()
    config.train.update(keep_checkpoints=3, keep_every=0, keep_best="psnr_y")
    whole, run = tmp_path / "whole", tmp_path / "run"
    save_steps(whole, config, 1, 2, metrics={step: {"psnr_y": 1.0} for step in (1, 2)})
    newest = whole / "checkpoints" / "2"
    files = sorted(path.relative_to(whole) for path in newest.rglob("*") if path.is_file())
    set_aside = 0
    for seed in range(MUTANTS):
        shutil.copytree(whole, run)
        file = files[seed % len(files)]
        damage(run / file, np.random.default_rng(seed))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "upsr_jax"):
            state = restored(run, config)
        ours = (record for record in caplog.records if record.name.startswith("upsr_jax"))
        told = [record.getMessage() for record in ours]
        if not (run / "damaged_checkpoints").exists():
            assert not told, (seed, file)
            assert_same(state, state_after(2, 2))
        else:
            (sentence,) = told
            assert "the checkpoint of step 2 is damaged (" in sentence, (seed, file)
            # The item that holds the file, or the array, where no file shows it
            item = file.parts[2]
            assert f"/2/{item}" in sentence or "the array " in sentence, (seed, file, sentence)
            assert_same(state, state_after(1, 1))
            set_aside += 1
        shutil.rmtree(run)
    assert 0.3 * MUTANTS < set_aside < MUTANTS
