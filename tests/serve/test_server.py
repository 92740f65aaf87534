"""The command itself: what it refuses to start with, and how it bears load and ends."""

import re
import socket
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from upsr_jax.cli import app
from upsr_jax.upscale.restore import Sampling

ROOT = Path(__file__).parents[2]


def test_others_are_not_let_in_without_a_token():
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"], env={"UPSR_TOKEN": None})
    assert result.exit_code == 2
    assert re.fullmatch(r"upsr: --host 0\.0\.0\.0 .*--token.*\n", result.stderr)


def test_a_port_that_is_taken_is_named(model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "--port", str(port), "--model", str(model)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"upsr: 127.0.0.1:{port}: ") and "--port" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--model", str(tmp_path / "none")])
    assert result.exit_code == 2 and str(tmp_path / "none") in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_device_and_precision_are_those_asked_for(model, monkeypatch):
    def once(load_fn, *_):
        raise ValueError(f"loaded in {load_fn(Sampling()).recipe['precision']}")

    monkeypatch.setattr("upsr_jax.serve.server.serve", once)
    command = ["serve", "--model", str(model), "--device", "cpu", "--precision", "bfloat16"]
    assert CliRunner().invoke(app, command).stderr == "upsr: loaded in bfloat16\n"
    result = CliRunner().invoke(app, ["serve", "--device", "tpu", "--model", str(model)])
    assert result.exit_code == 2 and "tpu" in result.stderr


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    for name in [each for each in sys.modules if each.startswith("upsr_jax.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "pip install 'upsr_jax[serve]'" in result.stderr


def test_load_gives_right_answers_and_sigterm_a_good_end(model):
    command = [sys.executable, ROOT / "scripts" / "load_test.py", "--model", model]
    options = ["--clients", "4", "--seconds", "20"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"'right': [1-9]", run.stdout)
