"""What keeps the compiler right, in processes of their own, as JAX reads its flags once."""

import os
import subprocess
import sys

import pytest

from upsr_jax.cluster import compiler

ALL_FUSIONS = (
    "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
)


def run(code: str, **variables: str) -> str:
    """Run Python without the flags of these tests, on the CPU; return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", f"from upsr_jax.cluster.compiler import *\n{code}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "use_safe_compiler(); print(wrong_programs())",
        "print(wrong_programs(compiler_options('cpu')))",
    ],
    ids=["commands", "library"],
)
def test_the_programs_that_are_known_to_go_wrong_come_out_right(code):
    assert run(code) == "[]"


def test_a_wrong_compiler_is_seen():
    """Where this JAX has the fault, both ways to name the fusions must show it."""
    shown = run(f"print(len(wrong_programs({{FLAG: {ALL_FUSIONS!r}}})))")
    flagged = run(
        "use_safe_compiler(); print(len(wrong_programs(compiler_options('cpu'))))",
        XLA_FLAGS=f"--{compiler.FLAG}={ALL_FUSIONS}",
    )
    if (shown, flagged) == ("0", "0"):
        pytest.skip("this JAX and processor have not the fault")
    assert int(shown) and int(flagged)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, compiler.SAFE_FLAG),
        ("--xla_dump_to=x", f"--xla_dump_to=x {compiler.SAFE_FLAG}"),
        (f"--{compiler.FLAG}=-reduce", f"--{compiler.FLAG}=-reduce"),
        ("flags.txt", "flags.txt"),
    ],
)
def test_flags_of_the_user_stay(monkeypatch, before, after):
    monkeypatch.delenv("XLA_FLAGS")
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    compiler.use_safe_compiler()
    assert os.environ["XLA_FLAGS"] == after
    set_by_flag = compiler.FLAG in after
    assert compiler.compiler_options("cpu") == (
        None if set_by_flag else {compiler.FLAG: compiler.SAFE}
    )
    assert compiler.compiler_options("gpu") is None


@pytest.mark.parametrize(
    ("version", "known"),
    [("0.9.2", False), ("0.10.0", True), ("0.12.0", True), ("0.13.0", False), ("1.0", False)],
)
def test_a_jaxlib_that_may_not_know_the_flag_gets_none(monkeypatch, version, known):
    """An unknown one in XLA_FLAGS ends the process."""
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(compiler.importlib.metadata, "version", lambda _: version)
    compiler.use_safe_compiler()
    assert ("XLA_FLAGS" in os.environ) == known


@pytest.mark.parametrize("module", ["upsr_jax.cli", "upsr_jax.main"])
def test_both_entry_points_set_it_before_jax_starts(module, tmp_path):
    start = {
        "upsr_jax.cli": f"cli.app(['info', {str(tmp_path / 'none')!r}], standalone_mode=False)",
        "upsr_jax.main": """
main.flags.FLAGS(["main", "--config", "demo", "--workdir", "gs://none"])
main.main([])""",
    }[module]
    code = f"""
import atexit, os
import jax
from jax._src import xla_bridge
from upsr_jax import cli, main
from upsr_jax.cluster import devices
def check():
    assert not xla_bridge.backends_are_initialized()
    print(os.environ["XLA_FLAGS"], flush=True)
    os._exit(0)
devices.check_devices = check
{start}
"""
    assert run(code) == compiler.SAFE_FLAG
