"""Evaluation gives the same on any devices, processes and company, and survives being killed."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import launch, running
from small import get_config
from stand_in import write_pair
from tiny_model import random_params

from upsr_jax.models.config import ModelConfig
from upsr_jax.weights.model_folder import save_model

# Low-resolution images of two shapes for the networks and three for the metrics.
SIZES = [(50, 34), (70, 64), (20, 24), (99, 36), (60, 48), (64, 64), (33, 40), (48, 48), (36, 60)]
BROKEN = "4"
# XLA gives a CPU as many threads as devices, if those are more than cores, and splits sums by their
# number, which moves last digits. So all runs get the same number.
ENV = {"NPROC": "4"}


def write_images(folder: Path, chosen: range) -> Path:
    for i in chosen:
        write_pair(folder, str(i), i, *SIZES[i])
    if int(BROKEN) in chosen:
        (folder / "lq" / f"{BROKEN}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Callable[..., list[str]]:
    """Build the command that evaluates a small model on the images of a folder."""
    folder = tmp_path_factory.mktemp("model")
    config = get_config()
    save_model(folder / "model", ModelConfig.of(config), random_params(config))
    settings = {
        "model": folder / "model",
        "max_images": 99,
        "metrics": "('psnr_y', 'ssim_y', 'lpips_alex', 'niqe')",
        "per_device_batch": 2,
        "tile": 128,
    }

    def build(images: Path, workdir: Path) -> list[str]:
        folders = {"gt": images / "gt", "lr": images / "lq"}
        flags = [f"--config.eval.{key}={value}" for key, value in (settings | folders).items()]
        program = [sys.executable, "-m", "upsr_jax.main", "--mode", "evaluate"]
        config_file = str(Path(__file__).with_name("small.py"))
        return [*program, "--config", config_file, "--workdir", str(workdir), *flags]

    return build


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), range(len(SIZES)))


@pytest.fixture(scope="module")
def alone(command, images, tmp_path_factory) -> Path:
    """The folder that all others are compared with: all images, one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    launch(command(images, workdir), env=ENV)
    return workdir / "evaluation"


def read_results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def assert_same(found: Path, expected: Path, names: set[str]) -> None:
    """Compare metrics to 1e-6 and images to the bit."""
    results, wanted = read_results(found), read_results(expected)
    assert results["images"].keys() == names - {BROKEN}
    assert results["broken"].keys() == names & {BROKEN}
    for name, row in results["images"].items():
        for metric in results["metrics"]:
            value, other = row[metric], wanted["images"][name][metric]
            assert value == other or value == pytest.approx(other, rel=1e-6, abs=1e-6)
        for kind in ("images", "uncertainty"):
            first, second = (folder / kind / f"{name}.png" for folder in (found, expected))
            assert first.read_bytes() == second.read_bytes()
    suffixes = {path.suffix or path.name for path in found.rglob("*") if path.is_file()}
    assert suffixes == {".png", ".json", ".jsonl", ".md", ".html", ".lock"}


def test_it_has_something_to_say(alone):
    results = read_results(alone)
    assert results["timing"]["devices"] == 1
    assert set(results["broken"]) == {BROKEN}
    assert results["means"]["niqe"]["images"] < results["means"]["psnr_y"]["images"] == 8
    assert len({row["psnr_y"] for row in results["images"].values()}) == 8


def test_devices_and_company_change_nothing(command, alone, tmp_path):
    """Four devices, and six images of the nine: other batches, and other neighbours in them."""
    images = write_images(tmp_path / "images", range(1, 7))
    launch(command(images, tmp_path / "run"), devices=4, env=ENV)
    out = tmp_path / "run" / "evaluation"
    assert read_results(out)["timing"]["devices"] == 4
    assert_same(out, alone, set("123456"))


def test_two_processes_share_the_images(command, images, alone, tmp_path):
    first, _ = launch(command(images, tmp_path), processes=2, devices=2, env=ENV)
    out = tmp_path / "evaluation"
    assert_same(out, alone, set("012345678"))
    counts = [len((out / f"rows.{i}.jsonl").read_text().splitlines()) for i in range(2)]
    assert sorted(counts) == [4, 5]
    assert "psnr_y" in first.stdout
    means, wanted = (read_results(folder)["means"] for folder in (out, alone))
    for metric, mean in means.items():
        assert mean == pytest.approx(wanted[metric], rel=1e-6)


def whole_rows(out: Path) -> list[dict]:
    file = out / "rows.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_kills_lose_and_repeat_nothing(command, images, alone, tmp_path):
    out = tmp_path / "evaluation"
    for rows in (0, 2):
        with running(command(images, tmp_path), env=ENV) as (process,):
            deadline = time.monotonic() + 300
            while not (out / "options.json").exists() or len(whole_rows(out)) < rows:
                assert time.monotonic() < deadline and process.popen.poll() is None, (
                    process.report()
                )
                time.sleep(0.01)
            process.popen.send_signal(signal.SIGKILL)
            assert process.wait(20).returncode == -signal.SIGKILL
        assert not (out / "results.json").exists()
    done = [row["name"] for row in whole_rows(out) if "broken" not in row]
    times = {name: (out / "images" / f"{name}.png").stat().st_mtime_ns for name in done}
    (ended,) = launch(command(images, tmp_path), env=ENV)
    assert read_results(out)["timing"]["images"] == len(SIZES) - 1 - len(done) < len(SIZES) - 1
    assert_same(out, alone, set("012345678"))
    for name, written in times.items():
        assert (out / "images" / f"{name}.png").stat().st_mtime_ns == written
    names = [row["name"] for row in whole_rows(out)]
    assert sorted(names) == sorted(set(names)) == list("012345678")
    assert f"{BROKEN} is broken" in ended.stderr + ended.stdout
