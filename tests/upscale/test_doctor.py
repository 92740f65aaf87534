"""The doctor finds this installation sound, and each fault that is put into it."""

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from upsr_jax import cli
from upsr_jax.cluster.compiler import FLAG
from upsr_jax.upscale import doctor


def test_this_installation_is_sound(tmp_path, monkeypatch):
    """The whole of it, with the built-in model."""
    monkeypatch.setenv("UPSR_MODELS", str(tmp_path / "models"))
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert result.stderr == "" and result.stdout.endswith("\nnothing is wrong\n")
    names = [line.split()[0] for line in result.stdout.splitlines() if line]
    assert names[:2] == ["upsr_jax", "python"] and names[-3:-1] == ["compiler", "self-test"]
    reads, writes = (
        line.split()[1:]
        for line in result.stdout.splitlines()
        if line.split()[:1] != [] and line.split()[0] in ("reads", "writes")
    )
    assert {"JPEG,", "PNG,"} <= set(reads) and {"png,", "jpg,"} <= set(writes)


def test_another_picture_is_seen(monkeypatch):
    """A bicubic enlargement in place of the model's is the nearest that may be taken for it."""

    def enlarge(pixels):
        return cv2.resize(pixels, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)

    monkeypatch.setattr(doctor.Upscaler, "from_pretrained", lambda: enlarge)
    assert "computes another picture: install" in doctor.examine_model().wrong


def test_a_model_that_does_not_run_is_seen(monkeypatch):
    def fail():
        raise FloatingPointError("the model gave NaN or infinity")

    monkeypatch.setattr(doctor.Upscaler, "from_pretrained", fail)
    assert doctor.examine_model().wrong.endswith("does not run: the model gave NaN or infinity")


@pytest.mark.parametrize("flag", [f"--{FLAG}=reduce", ""])
def test_a_wrong_compiler_is_named_with_its_flag(monkeypatch, flag):
    monkeypatch.setenv("XLA_FLAGS", flag)
    monkeypatch.setattr(doctor, "wrong_programs", lambda options: ["a product"])
    monkeypatch.setattr(doctor.jax, "default_backend", lambda: "cpu")
    wrong = doctor.examine_compiler().wrong
    assert "computes wrong a product" in wrong and f"--{FLAG}=LIBRARY" in wrong
    assert (f"take --{FLAG} out of XLA_FLAGS" in wrong) == bool(flag)


def test_a_format_that_fails_is_named(monkeypatch):
    def copy(name):
        if name == "GIF":
            raise OSError("encoder\nmissing")
        if name == "jxl":
            raise ImportError("needs an extra: pip install 'upsr_jax[photos]'")
        return np.full((8, 8, 3), 0 if name == "BMP" else 90, np.uint8)

    found = doctor.try_formats("reads", ["PNG", "GIF", "BMP", "jxl"], copy, copy("PNG"))
    assert found.text == "PNG; not jxl (needs an extra: pip install 'upsr_jax[photos]')"
    assert found.wrong.startswith(
        "reads no GIF (encoder missing), BMP (it gives other pixels): pip install"
    )


def test_no_place_for_compiled_programs_is_named():
    assert "every start compiles again" in doctor.examine_cache(None).wrong


def test_what_is_wrong_makes_it_fail(monkeypatch):
    findings = [doctor.Finding("a", "good"), doctor.Finding("b", "bad", "b is wrong: cure it")]
    monkeypatch.setattr(doctor, "examine", lambda programs: findings)
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert (result.exit_code, result.stderr) == (1, "wrong: b is wrong: cure it\n")
    assert result.stdout.split() == ["a", "good", "b", "bad"]


def test_an_extra_that_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda package: package != "huggingface-hub")
    extras = doctor.describe_extras().split(", ")
    assert "hub (not installed: pip install 'upsr_jax[hub]')" in extras
    assert "train" in extras and not {"dev", "test"} & set(extras)
