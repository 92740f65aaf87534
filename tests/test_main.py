"""The commands of the README, as processes of their own."""

import json
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "upsr_jax.main", "--config", "configs/demo.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_the_demo_trains_and_evaluates(tmp_path):
    steps = ("train.steps", "train.eval_every", "train.checkpoint_every", "train.log_every")
    short = [f"--config.{name}=2" for name in steps]
    trained = run_main("--workdir", str(tmp_path), *short)
    assert trained.returncode == 0, trained.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"checkpoints", "config.json", "metrics.jsonl", "model", "pictures"} <= written

    evaluated = run_main("--workdir", str(tmp_path), "--mode", "evaluate")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "sampler: ddim\nsteps: 5\n" in evaluated.stdout
    assert "VGG-16, version 0.1" in evaluated.stdout
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    watched = [json.loads(line) for line in lines if "eval/psnr_y" in line][-1]
    assert abs(results["means"]["psnr_y"]["mean"] - watched["eval/psnr_y"]) < 1e-4


def test_missing_photographs_end_it_with_one_sentence_and_the_cure(tmp_path):
    run = run_main("--workdir", str(tmp_path), "--config.data.folders=('nowhere',)")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "nowhere" in run.stderr and "Put photographs there" in run.stderr


def test_sigterm_stops_an_evaluation_with_one_line(tmp_path):
    code = f"""
import os, signal, sys, time
from upsr_jax import main
from upsr_jax.train import evaluate
evaluate.evaluate = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))
sys.argv = ["main", "--config", "demo", "--mode", "evaluate", "--workdir", {str(tmp_path)!r}]
main.app.run(main.main)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 128 + signal.SIGTERM
    said = "upsr_jax: stopped; the same command goes on from there, and what is done is whole.\n"
    assert (run.stdout, run.stderr) == ("", said)
