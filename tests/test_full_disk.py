"""Whichever write finds the disk full: what was whole stays so, the path is told, it goes on.

The disk is a library under the C library, which fails from the n-th write in a folder on.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
COMPILER = shutil.which("cc")
PROGRAM = """
import ctypes, itertools, os, shutil, sys
from contextlib import closing
from pathlib import Path
import numpy as np
import jax.numpy as jnp
from configs import tiny
from photos import draw_photo
from small_checkpoints import FROZEN, IMAGES, save_steps
from upsr_jax.evaluation.folder import Rows
from upsr_jax.files.write_photo import write_image
from upsr_jax.train.checkpoints import export_model, open_checkpoints, quiet_orbax, read_checkpoint
from upsr_jax.train.writer import Writer
from upsr_jax.weights.model_folder import load_model

sys.path.append("scripts")
from prepare_imagenet import pack

fill_disk = ctypes.CDLL(None).fill_disk
fill_disk.argtypes = [ctypes.c_char_p, ctypes.c_long]
quiet_orbax()
root = Path(sys.argv[1])
config = tiny.get_config()
config.train.update(keep_checkpoints=9, keep_every=0, keep_best="")
save_steps(root / "run", config, 1)
for i in range(3):
    write_image(root / "photos" / f"{i}.png", draw_photo(i, 32, 32))


def same_model(folder):
    assert load_model(folder, check_weights=False)[1].keys() == {"denoiser", "estimator"}


def train(out):
    with closing(Writer(out, 0, enabled=True)) as writer:
        writer.scalars(1, "train", {"loss": 0.5})
        writer.picture(1, "eval", draw_photo(0, 32, 32))


jobs = {
    "export": lambda out: export_model(root / "run", out / "model", overwrite=True),
    "pack": lambda out: pack([str(root / "photos")], out / "packed", 2),
    "upscale": lambda out: write_image(out / "a.png", draw_photo(0, 99, 99), overwrite=True),
    "metrics": train,
    "checkpoint": lambda out: save_steps(out, config, 2),
}
befores = {  # what is there already must stay whole
    "export": (jobs["export"], lambda out: load_model(out / "model", check_weights=False)),
    "upscale": (jobs["upscale"], lambda out: Path(out / "a.png").read_bytes()[-8:-4] == b"IEND"),
    "checkpoint": (lambda out: save_steps(out, config, 1), lambda out: read_checkpoint(out, 1)),
}
for name, job in jobs.items():
    prepare, check = befores.get(name, (lambda out: None, lambda out: True))
    failed = 0
    for n in itertools.count(1, 8 if name == "checkpoint" else 1):
        out = root / "out"
        out.mkdir()
        prepare(out)
        fill_disk(os.fsencode(out), n)
        try:
            job(out)
        except (OSError, ValueError) as error:
            told = str(error)
        else:
            told = ""
        fill_disk(b"", 0)
        assert str(out) in told and "ake room" in told or not told, (name, n, told)
        assert ".upsr-" not in told, told
        assert check(out) is not False, (name, n)
        assert not list(out.rglob(".upsr-*")), (name, n)
        job(out)
        shutil.rmtree(out)
        if not told:
            break
        failed += 1
    print(name, failed, flush=True)
os._exit(0)  # orbax waits on, as `join.leave` tells
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_every_write_may_find_the_disk_full(tmp_path):
    assert COMPILER
    library = tmp_path / "full_disk.so"
    source = TESTS / "full_disk.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, tmp_path],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    counts = dict(line.split() for line in ended.stdout.splitlines())
    assert counts.keys() == {"export", "pack", "upscale", "metrics", "checkpoint"}
    assert all(int(count) >= 1 for count in counts.values()), counts
    assert "Traceback" not in ended.stderr, ended.stderr[-3000:]
