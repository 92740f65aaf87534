import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from upsr_jax.files import whole
from upsr_jax.weights.model_folder import load_model, save_model

CONFIG = {"model": {"width": 32, "multipliers": (1, 2), "mask": "swin"}, "rate": 1e-4, "none": None}
FILES = ["model.safetensors", "config.json", "sha256"]


def make_params(seed: int) -> dict:
    values = np.random.default_rng(seed).random(18, np.float32).reshape(2, 9)
    return {"denoiser": {"stem": {"kernel": values, "bias": values[0]}}, "estimator": {"s": values}}


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(tmp_path / "model", CONFIG, make_params(0))
    return tmp_path / "model"


def assert_holds(folder: Path, seed: int) -> None:
    """Check that a folder is the whole model that `make_params(seed)` gave."""
    _, params = load_model(folder)
    expected = make_params(seed)
    kernel = expected["denoiser"]["stem"]["kernel"]
    np.testing.assert_array_equal(params["denoiser"]["stem"]["kernel"], kernel)
    np.testing.assert_array_equal(params["estimator"]["s"], expected["estimator"]["s"])


def test_model_comes_back(model):
    config, params = load_model(model)
    assert isinstance(config, ConfigDict)
    assert config.to_dict() == CONFIG
    assert isinstance(config.model.multipliers, tuple)
    assert params.keys() == {"denoiser", "estimator"}
    assert_holds(model, 0)


def test_config_dict_is_taken(tmp_path):
    save_model(tmp_path / "model", ConfigDict(CONFIG), make_params(0))
    assert load_model(tmp_path / "model")[0] == ConfigDict(CONFIG)


def test_transposed_arrays_come_back(tmp_path):
    """The safetensors library writes the buffer of a transposed view as it lies."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    save_model(tmp_path / "model", {}, {"a": array, "b": array[1], "scalar": jnp.float32(3)})
    _, params = load_model(tmp_path / "model")
    np.testing.assert_array_equal(params["a"], array)
    np.testing.assert_array_equal(params["b"], array[1])
    assert params["scalar"].shape == () and params["scalar"] == 3


def test_dtype_is_kept_on_disk_and_float32_in_memory(tmp_path):
    half = jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16)
    save_model(tmp_path / "model", {}, {"half": half})
    stored = load_model(tmp_path / "model", dtype=None)[1]["half"]
    loaded = load_model(tmp_path / "model")[1]["half"]
    assert (stored.dtype, loaded.dtype) == (jnp.bfloat16, np.float32)
    np.testing.assert_array_equal(stored, half)
    np.testing.assert_array_equal(loaded, np.asarray(half, np.float32))


def test_sums_are_those_of_sha256sum(model):
    for line in (model / "sha256").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in model.iterdir()) == sorted(FILES)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "sha256"], cwd=model, check=True)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(model, name):
    (model / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"model/{name} is missing: copy, download"):
        load_model(model)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x[:-9] + b"!" + x[-8:]])
def test_damage_is_seen(model, name, damage):
    (model / name).write_bytes(damage((model / name).read_bytes()))
    with pytest.raises(ValueError, match=f"model/{name} is damaged"):
        load_model(model)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"\x30" * 40), ("config.json", b"[1")],
)
def test_foreign_content_with_right_sums_is_refused(model, name, content):
    sums = (model / "sha256").read_text()
    old = hashlib.sha256((model / name).read_bytes()).hexdigest()
    (model / name).write_bytes(content)
    (model / "sha256").write_text(sums.replace(old, hashlib.sha256(content).hexdigest()))
    with pytest.raises(ValueError, match="model is no model folder of this program"):
        load_model(model)


def test_nothing_is_overwritten_unasked(model):
    with pytest.raises(FileExistsError, match="exists already"):
        save_model(model, CONFIG, make_params(1))
    assert_holds(model, 0)
    save_model(model, CONFIG, make_params(1), overwrite=True)
    assert_holds(model, 1)
    assert list(model.parent.iterdir()) == [model]


def test_a_folder_with_other_files_is_never_overwritten(model):
    (model / "photo.jpg").touch()
    with pytest.raises(FileExistsError, match="other files"):
        save_model(model, CONFIG, make_params(1), overwrite=True)
    assert_holds(model, 0)


def test_unwritable_config_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_model(tmp_path / "model", {"dtype": jnp.ones(2)}, make_params(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_rename", [1, 2, 3])
def test_failure_leaves_the_previous_model(model, monkeypatch, failing_rename):
    """On a file system that can't exchange two folders in one step."""
    renames, rename = [], Path.rename

    def fail(self, target):
        renames.append(target)
        if len(renames) == failing_rename:
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(whole, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(model, CONFIG, make_params(1), overwrite=True)
    assert_holds(model, 0)
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems replace it in two steps")
def test_a_model_is_replaced_in_one_step(model, monkeypatch):
    monkeypatch.setattr(whole, "_former_of", lambda _: pytest.fail("it took two"))
    with whole.whole_folder(model) as part:
        (part / "file").touch()
    assert [path.name for path in model.iterdir()] == ["file"]
    assert list(model.parent.iterdir()) == [model]


def test_a_link_to_a_model_stays_one(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    save_model(tmp_path / "link", CONFIG, make_params(1), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_holds(model, 1)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link", model]


KILLED_SAVE = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
from upsr_jax.files import whole
from upsr_jax.weights.model_folder import save_model

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_third(self, target, rename=Path.rename, renames=[]):
    renames.append(target)
    kill() if len(renames) == 3 else rename(self, target)

match sys.argv[2]:
    case "before": whole.sync = kill  # all files are there, but maybe not yet on the disk
    case "between": whole._exchange, Path.rename = lambda *_: False, kill_third
    case "after": shutil.rmtree = kill
save_model(sys.argv[1], {}, {"a": np.zeros(9)}, overwrite=True)
"""


def save_and_be_killed(folder: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED_SAVE, str(folder), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_kill_leaves_a_whole_model_and_the_next_write_removes_the_rest(model, moment):
    save_and_be_killed(model, moment)
    assert model.exists() == (moment != "between")
    assert len(list(model.parent.iterdir())) == 2
    if moment == "after":
        assert load_model(model)[1]["a"].shape == (9,)
    else:
        assert_holds(model, 0)
    save_model(model, CONFIG, make_params(1), overwrite=True)
    assert_holds(model, 1)
    assert list(model.parent.iterdir()) == [model]


def test_a_kill_of_a_first_save_leaves_no_model(tmp_path):
    save_and_be_killed(tmp_path / "model", "before")
    assert not (tmp_path / "model").exists()
    save_model(tmp_path / "model", CONFIG, make_params(1))
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
