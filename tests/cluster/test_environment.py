import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from upsr_jax.cluster import environment


def test_the_environment_is_json_and_names_what_matters(monkeypatch):
    monkeypatch.setenv("XLA_EXAMPLE", "a value")  # not XLA_FLAGS: a backend may start here
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    text = json.dumps(environment.describe_environment())
    described = json.loads(text)
    assert described["packages"]["jax"] == jax.__version__
    assert described["variables"]["XLA_EXAMPLE"] == "a value"
    assert "hunter2" not in text
    assert described["processes"] == 1
    assert described["devices"] == described["local_devices"] == jax.device_count()
    assert described["device_kind"] == "cpu"
    assert described["command"] == ["python", "train.py"]


def test_what_is_left_of_a_package_without_a_name_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "foo-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    packages = environment.describe_environment()["packages"]
    assert packages["jax"] == jax.__version__ and None not in packages


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the package seems to lie."""
    (tmp_path / "upsr_jax" / "cluster").mkdir(parents=True)
    (tmp_path / "upsr_jax" / "cluster" / "environment.py").write_text("")
    monkeypatch.setattr(
        environment, "__file__", str(tmp_path / "upsr_jax" / "cluster" / "environment.py")
    )
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "one")
    git(tmp_path, "tag", "v1")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_revision_tells_commit_and_changes(checkout):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert len(commit) == 40 and environment.git_revision() == commit
    (checkout / "notes.txt").write_text("untracked")
    assert environment.git_revision() == commit
    (checkout / "upsr_jax" / "cluster" / "environment.py").write_text("changed")
    assert environment.git_revision() == commit + "+changes"


def test_an_installed_package_takes_no_other_repository(checkout, monkeypatch):
    installed = checkout / ".venv" / "site-packages" / "upsr_jax" / "cluster" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert environment.git_revision().endswith("no repository")


def test_a_broken_repository_is_no_error(checkout):
    (checkout / ".git" / "HEAD").write_text("nonsense")
    assert environment.git_revision() == "a repository that git can't read"


@pytest.mark.parametrize(
    ("device_kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_known_devices_have_their_data_sheets_peak(device_kind, teraflops):
    assert environment.peak_flops(device_kind, "bfloat16") == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "device_kind",
    [
        "cpu",
        "NVIDIA A10G",
        "NVIDIA H20",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "TPU v4 lite",
    ],
)
def test_unlike_devices_have_none(device_kind):
    assert environment.peak_flops(device_kind, "bfloat16") is None


def test_the_peak_depends_on_the_type():
    assert environment.peak_flops("NVIDIA L4", "float16") == pytest.approx(121e12)
    assert environment.peak_flops("NVIDIA L4", "float32") is None
    assert environment.peak_flops("TPU v4", "float16") is None


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    def device(used: int) -> SimpleNamespace:
        stats = {"bytes_in_use": used, "peak_bytes_in_use": used + 1, "bytes_limit": 100}
        return SimpleNamespace(memory_stats=lambda: stats | {"num_allocs": 7})

    monkeypatch.setattr(jax, "local_devices", lambda: [device(3), device(5), device(4)])
    expected = {"bytes_in_use": 5, "peak_bytes_in_use": 6, "bytes_limit": 100}
    assert environment.device_memory() == expected


def test_a_cpu_tells_no_memory():
    assert environment.device_memory() == {}
