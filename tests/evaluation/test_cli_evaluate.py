"""`upsr evaluate` and `upsr compare` hand on what they are told, and tell how it ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from photos import photo, read, save
from stand_in import write_set
from typer.testing import CliRunner

from upsr_jax.cli import app
from upsr_jax.evaluation import report
from upsr_jax.evaluation import run as run_module
from upsr_jax.upscale import upscaler
from upsr_jax.upscale.restore import Sampling

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """Run `upsr`; give exit code, output and errors."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("pairs", [True, False])
def test_evaluate_hands_its_options_on(tmp_path, run, monkeypatch, pairs):
    calls = []

    def evaluate_folders(*arguments, **options):
        calls.append((arguments, options))
        raise ValueError("no images here")

    monkeypatch.setattr(run_module, "evaluate_folders", evaluate_folders)
    gt, lr, out = tmp_path / "gt", tmp_path / "lr", tmp_path / "out"
    folders = ["--pairs", gt, lr] if pairs else ["--images", lr]
    given = ["--seed", "3", "--tile", "128", "--fidelity", "0.5"]
    given += ["--device", "cpu:0", "--precision", "bfloat16"]
    result = run("evaluate", *folders, "--out", out, *given)
    assert result.stderr == "upsr: no images here\n"
    assert result.exit_code == 2
    options = dict(seed=3, tile=128, sampling=Sampling(fidelity=0.5))
    options |= dict(device="cpu:0", precision="bfloat16")
    assert calls == [((upscaler.BUILT_IN_MODEL, lr, gt if pairs else None, out), options)]


@pytest.mark.parametrize(
    ("broken", "code", "words"),
    [({}, 0, ""), ({"a": "empty"}, 1, ""), (None, 130, "upsr: stopped; the same command goes on")],
)
def test_evaluate_tells_how_it_ended(tmp_path, run, monkeypatch, broken, code, words):
    def evaluate_folders(*_, **__):
        if broken is None:
            raise KeyboardInterrupt
        return {"broken": broken}

    monkeypatch.setattr(run_module, "evaluate_folders", evaluate_folders)
    result = run("evaluate", "--images", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == code and result.stderr.startswith(words)


def test_a_signal_stops_it_with_one_line_and_whole_files(tmp_path):
    """In a real process, whose results are slow to write."""
    config = write_set(tmp_path)
    for i in range(100):
        save(tmp_path / "in" / f"{i:02}.png", photo(5, 7))
    code = """
import sys, time
sys.path.insert(0, "tests")
from stand_in import make_noisy_resize
from upsr_jax import cli
from upsr_jax.evaluation import folder
from upsr_jax.upscale import upscaler
upscaler.make_super_resolve = make_noisy_resize
save_images = folder.save_images
folder.save_images = lambda *given: (time.sleep(0.2), save_images(*given))
cli.app()
"""
    arguments = ["evaluate", "--images", tmp_path / "in", "--out", tmp_path / "out"]
    command = [sys.executable, "-c", code, *map(str, arguments), "--model", config.eval.model]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    images = tmp_path / "out" / "images"
    for _ in range(600):
        if images.exists() and len(os.listdir(images)) > 4:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + signal.SIGTERM, "")
    # The line after those of the progress bar
    assert errors.splitlines()[-1].startswith("upsr: stopped; the same command goes on from there")
    assert "Traceback" not in errors
    rows = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert 1 <= len(rows) < 100
    for row in map(json.loads, rows):
        assert read(images / f"{row['name']}.png").shape == (20, 28, 3)


@pytest.mark.parametrize("folders", [[], ["--pairs", "gt", "lr", "--images", "lr"]])
def test_evaluate_needs_pairs_or_images(tmp_path, run, folders):
    result = run("evaluate", *folders, "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == "upsr: give either --pairs GT LR or --images LR.\n"


def test_compare_prints_the_table(tmp_path, run, monkeypatch):
    def compare(folders, out):
        assert folders == [tmp_path / "a", tmp_path / "b"]
        return f"| table | {out.name} |"

    monkeypatch.setattr(report, "compare", compare)
    result = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert result.stdout == "| table | c |\n"
