"""Collections in real processes: any devices, ends and shares give the same files, each once."""

import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launch import launch, running
from photos import save
from tiny_model import save_tiny_model

PICTURES = 60  # so many that three ends leave some
# A CPU cuts its sums by the number of threads, which would grow with simulated devices.
THREADS = {"NPROC": "8"}
COMMAND = [sys.executable, "-c", "from upsr_jax.cli import app; app()", "upscale"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of a model and of mixed pictures: grey, see-through, of many tiles."""
    folder = tmp_path_factory.mktemp("collection")
    save_tiny_model(folder / "model")
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        height, width = generator.integers(8, 64, 2)
        channels = (3, 4, 1, 3)[number % 4]
        if number % 8 == 7:
            width += 64
        pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
        path = folder / "in" / f"sub{number % 3}" / f"{number:03}.png"
        save(path, pixels.squeeze())
    return folder


def command(folder: Path, out: Path) -> list[str]:
    options = ["--out", str(out), "--model", str(folder / "model"), "--tile", "64"]
    return [*COMMAND, str(folder / "in"), *options]


def files_of(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.png")}


def marks_of(out: Path) -> dict[Path, tuple[int, int]]:
    """Tell by which file each result is and when it was written."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.png")}


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, bytes]:
    """The files that all others are compared with: one process, one device."""
    (run,) = launch(command(folder, folder / "alone"), env=THREADS)
    assert run.stdout == f"{PICTURES} of {PICTURES} upscaled into {folder / 'alone'}\n"
    assert run.stderr == ""
    files = files_of(folder / "alone")
    assert len(files) == PICTURES
    return files


def test_a_picture_on_its_own_gives_the_same_file(folder, alone, tmp_path):
    picture = folder / "in" / "sub1" / "007.png"
    options = ["--out", str(tmp_path), "--model", str(folder / "model"), "--tile", "64"]
    launch([*COMMAND, str(picture), *options], env=THREADS)
    assert files_of(tmp_path) == {"007.png": alone["sub1/007.png"]}


def test_stops_and_kills_lose_and_repeat_nothing_on_eight_devices(folder, alone, tmp_path):
    earlier: dict[Path, tuple[int, int]] = {}
    for signal_sent in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        with running(command(folder, tmp_path), devices=8, env=THREADS) as (process,):
            deadline = time.monotonic() + 100
            while len(files_of(tmp_path)) < len(earlier) + 1:
                running_still = process.popen.poll() is None
                assert running_still and time.monotonic() < deadline, process.report()
                time.sleep(0.005)
            process.popen.send_signal(signal_sent)
            process.wait(30)
        marks = marks_of(tmp_path)
        assert {path: marks[path] for path in earlier} == earlier  # not done twice, nor touched
        earlier = marks
        assert files_of(tmp_path).items() <= alone.items()
    assert len(earlier) < PICTURES  # or nothing was stopped
    (run,) = launch(command(folder, tmp_path), devices=8, env=THREADS)
    line = f"{PICTURES} of {PICTURES} upscaled into {tmp_path}, {len(earlier)} of them earlier\n"
    assert run.stdout == line
    assert files_of(tmp_path) == alone
    assert not list(tmp_path.rglob(".upsr-*"))  # nor is anything left of the killed ones
    marks = marks_of(tmp_path)
    assert {path: marks[path] for path in earlier} == earlier


def test_two_processes_share_a_folder(folder, alone, tmp_path):
    runs = launch(command(folder, tmp_path), processes=2, devices=2, env=THREADS)
    counts = []
    for process_id, run in enumerate(runs):
        line = rf"process {process_id} of 2: (\d+) of \1 upscaled into {tmp_path}\n"
        match = re.fullmatch(line, run.stdout)
        assert match, run.stdout
        counts.append(int(match[1]))  # and none of them earlier
    assert min(counts) > 0 and sum(counts) == PICTURES
    assert files_of(tmp_path) == alone
