"""`upsr evaluate` and `upsr compare` hand on what they are told, and tell how it ended."""

import pytest
from typer.testing import CliRunner

from upsr_jax import cli
from upsr_jax.cli import app
from upsr_jax.evaluation import report
from upsr_jax.evaluation import run as run_module
from upsr_jax.upscale import upscaler
from upsr_jax.upscale.restore import Sampling


@pytest.fixture
def run(monkeypatch):
    """Run `upsr`; give exit code, output and errors."""
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)
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
    fidelity = "--fidelity", "0.5"
    result = run("evaluate", *folders, "--out", out, "--seed", "3", "--tile", "128", *fidelity)
    assert result.stderr == "upsr: no images here\n"
    assert result.exit_code == 2
    options = dict(seed=3, tile=128, sampling=Sampling(fidelity=0.5))
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
