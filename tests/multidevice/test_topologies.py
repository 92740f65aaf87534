"""The same numbers on 1, 2, 4 and 8 devices, over meshes, processes and loader workers."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import Completed, launch, running
from photos import write_photos
from small import get_config
from tiny_model import random_params

from upsr_jax.models.config import ModelConfig
from upsr_jax.train.checkpoints import export_model
from upsr_jax.weights.model_folder import save_model

STEPS = 20

# Training in which the second process is stopped at its second image of an evaluation.
STOPPED = """
import signal
import jax
from absl import app
from upsr_jax import main
from upsr_jax.evaluation import watch

measure_all = watch.measure_all

def measure_stopped(*arguments):
    for i, item in enumerate(measure_all(*arguments)):
        if (jax.process_index(), i) == (1, 1):
            signal.raise_signal(signal.SIGTERM)
        yield item

watch.measure_all = measure_stopped
app.run(main.main)
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """The start of every command: a small run on photographs of its own."""
    folder = tmp_path_factory.mktemp("data")
    config, photos, model = get_config(), write_photos(folder / "photos", 3), folder / "model"
    # Drawn here: to draw a denoiser takes longer to compile than to train it.
    save_model(model, ModelConfig.of(config), random_params(config))
    flags = [f"--config.data.folders=('{photos}',)", f"--config.eval.gt={photos}"]
    flags += [f"--config.pretrained.{network}={model}" for network in ("estimator", "denoiser")]
    config_file = str(Path(__file__).with_name("small.py"))
    return [sys.executable, "-m", "upsr_jax.main", "--config", config_file, *flags]


def train(command: list[str], workdir: Path, *flags: str, **settings) -> list[Completed]:
    return launch([*command, "--workdir", str(workdir), *flags], timeout=400, **settings)


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers_of(workdir: Path) -> np.ndarray:
    """Losses and gradient norms of every step [steps, 2]."""
    lines = lines_of(workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.array([[line["train/loss"], line["train/grad_norm"]] for line in lines])


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory) -> Path:
    """The folder of the run that all others are compared with: one device, one process."""
    workdir = tmp_path_factory.mktemp("alone")
    train(command, workdir)
    return workdir


@pytest.mark.parametrize(
    ("devices", "flags"),
    [
        (2, ["--config.mesh.data=2"]),
        (4, ["--config.mesh.fsdp=2", "--config.data.num_workers=2", "--profile=3:4"]),
    ],
)
def test_no_topology_changes_the_losses(command, alone, tmp_path, devices, flags):
    train(command, tmp_path, *flags, devices=devices)
    np.testing.assert_allclose(numbers_of(tmp_path), numbers_of(alone), rtol=1e-5)
    traced = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traced) == ("--profile=3:4" in flags)


def test_a_finished_run_does_nothing(command, alone):
    (again,) = train(command, alone)
    assert "nothing to do: this run has finished its 20 steps" in again.stderr
    assert len(lines_of(alone)) == STEPS
    assert (alone / "finished").read_text() == "20\n"


def test_a_stopped_run_goes_on_elsewhere_with_the_same_losses(command, alone, tmp_path):
    """Four devices of two processes, two of two, then eight of one."""
    folder = ["--workdir", str(tmp_path), "--config.train.checkpoint_every=3"]
    flags = ["--config.mesh.fsdp=2", "--config.train.steps=9999"]
    with running([*command, *folder, *flags], processes=2, devices=2) as both:
        both[0].wait_for(" 4/9999", timeout=400)
        both[1].popen.send_signal(signal.SIGTERM)
        first, second = (process.wait(60) for process in both)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    stopped = len(lines_of(tmp_path))
    assert 4 <= stopped < 14
    assert f"stopped by another process after step {stopped}, which is saved" in first.stderr
    assert f"stopped by SIGTERM after step {stopped}, which is saved" in second.stderr

    newest = tmp_path / "checkpoints" / str(stopped) / "state"
    path = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    flags = ["--config.mesh.fsdp=2", "--config.train.steps=14"]
    first, _ = launch([*command, *folder, *flags], processes=2, devices=1)
    assert f"the checkpoint of step {stopped} is damaged" in first.stderr
    assert f"going on after step {(stopped - 1) // 3 * 3}" in first.stderr
    assert export_model(tmp_path, tmp_path / "exported") == 14
    for path in (tmp_path / "exported").iterdir():  # of weights that two processes shared
        assert path.read_bytes() == (tmp_path / "model" / path.name).read_bytes()

    (last,) = launch([*command, *folder, "--config.mesh.fsdp=8"], devices=8)
    assert "going on after step 14" in last.stderr
    first_lines = last.stderr.partition("+---")[0]
    for told in ("8 x cpu, 1 processes", "data 1 x fsdp 8", "float32", "8 images of 64 pixels"):
        assert told in first_lines
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (environment["devices"], environment["processes"]) == (8, 1)
    np.testing.assert_allclose(numbers_of(tmp_path), numbers_of(alone), rtol=1e-5)


def test_a_stop_ends_an_evaluation_on_all_processes(command, tmp_path):
    """Of three images the first process has one and the second two."""
    program = [sys.executable, "-c", STOPPED, *command[3:], "--workdir", str(tmp_path)]
    settings = {"train.eval_every": 1, "eval.max_images": 3}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    first, second = launch([*program, *flags], processes=2, timeout=400)
    assert "stopped by another process after step 1, which is saved" in first.stderr
    assert "stopped by SIGTERM after step 1, which is saved" in second.stderr
    assert len(lines_of(tmp_path)) == 1


def test_what_can_be_mended_ends_with_one_sentence(command, alone, tmp_path):
    (tmp_path / "file").write_text("")
    cases = {
        "config contradicts the checkpoints": ["--workdir", str(alone), "--config.seed=1"],
        "Not a directory": ["--workdir", str(tmp_path / "file" / "run")],
        "doesn't fit 1 devices": ["--workdir", str(tmp_path / "new"), "--config.mesh.fsdp=3"],
    }
    for sentence, flags in cases.items():
        (ended,) = launch([*command, *flags], check=False)
        assert ended.returncode == 1
        assert sentence in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
