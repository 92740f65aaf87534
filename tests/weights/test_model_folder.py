import functools
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save
from tiny_model import changed, draw

from configs import tiny
from upsr_jax.files import whole
from upsr_jax.models.build import init_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights.model_folder import load_model, save_model

FILES = ["model.safetensors", "config.json", "sha256"]
CONFIG = ModelConfig.of(changed(tiny.get_config(), network="estimator"))


@functools.cache
def make_params(seed: int) -> dict:
    params = draw(init_estimator, CONFIG.estimator, seed)
    return {"estimator": jax.tree.map(np.float32, params)}


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(tmp_path / "model", CONFIG, make_params(0))
    return tmp_path / "model"


def assert_holds(folder: Path, seed: int) -> None:
    """Check that a folder is the whole model that `make_params(seed)` gave."""
    _, params = load_model(folder)
    jax.tree.map(np.testing.assert_array_equal, params, make_params(seed))


def test_model_comes_back(model):
    config, _ = load_model(model)
    assert config == CONFIG
    assert config.estimator and isinstance(config.estimator["depths"], tuple)
    assert_holds(model, 0)


def test_a_folder_from_before_steps_could_be_spaced_is_spaced_as_released(model):
    config = json.loads((model / "config.json").read_text())
    assert "spacing" not in config["sampler"]  # nor in those of today, which do as usual
    config["sampler"]["spacing"] = "released"
    replace_file(model, "config.json", json.dumps(config).encode())
    loaded, _ = load_model(model)
    assert loaded == CONFIG


def test_transposed_arrays_come_back(tmp_path):
    """The safetensors library writes the buffer of a transposed view as it lies."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    save_model(tmp_path / "model", None, {"a": array, "b": array[1], "scalar": jnp.float32(3)})
    arrays = load_file(tmp_path / "model" / "model.safetensors")
    np.testing.assert_array_equal(arrays["a"], array)
    np.testing.assert_array_equal(arrays["b"], array[1])
    assert arrays["scalar"].shape == () and arrays["scalar"] == 3


def test_dtype_is_kept_on_disk_and_float32_in_memory(tmp_path):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), make_params(0))
    save_model(tmp_path / "model", CONFIG, half)
    stored = load_model(tmp_path / "model", dtype=None)[1]
    loaded = load_model(tmp_path / "model")[1]
    jax.tree.map(np.testing.assert_array_equal, stored, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.float32(y)), loaded, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


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


def replace_file(model: Path, name: str, content: bytes) -> None:
    """Replace a file of a model folder, and its sum."""
    (model / name).write_bytes(content)
    sums = [
        f"{hashlib.sha256((model / file).read_bytes()).hexdigest()}  {file}" for file in FILES[:2]
    ]
    (model / "sha256").write_text("\n".join(sums))


def refusal(model: Path) -> str:
    """Load a model folder, which is to fail with one line that names the folder; return it."""
    with pytest.raises(ValueError, match="model is no model folder of this program: ") as info:
        load_model(model)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x30" * 40),
        ("config.json", b"[1"),
        ("config.json", b"\xff"),
        ("config.json", b"[" * 100_000),
        ("config.json", b" " * 2**20 + b"{}"),
        ("config.json", b"[]"),
        ("config.json", b"null"),
        ("config.json", b"{}"),
    ],
)
def test_foreign_content_with_right_sums_is_refused(model, name, content):
    replace_file(model, name, content)
    refusal(model)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("diffusion.steps", 10**9, r"config\.diffusion\.steps is 1000000000: it must be a whole"),
        ("diffusion.steps", 1, "it must be a whole number in 2"),
        ("diffusion.steps", 5.0, "it must be a whole number in 2"),
        ("diffusion.end", 5, "it must be above 0 and at most 1"),
        ("diffusion.kappa", float("nan"), "it must be above 0"),
        ("diffusion.kappa", float("inf"), "it must be above 0"),
        ("diffusion.kappa", "2.5", "it must be above 0"),
        ("diffusion.kappa", None, "it must be above 0"),
        ("diffusion", [], "must be a block of keys"),
        ("diffusion.stpes", 5, r"nothing reads config\.diffusion\.stpes: did you mean steps"),
        ("prior.min_noise", 5, r"it must be in 0\.\.1"),
        ("prior.un", True, "it must be at least 0"),
        ("prior", {"un": 0.1}, r"config\.prior\.min_noise is missing"),
        ("sampler.method", ["ddim"], "it must be one of ddim"),
        ("sampler.steps", 6, "more than the 5 of the diffusion"),
        ("sampler.spacing", "even", "it must be one of last, released"),
        ("network", "denoisr", "it must be one of denoiser, estimator"),
        ("dtype", "float8", "it must be one of float32"),
        ("estimator.embed_dim", 25, "must be a multiple of estimator.num_heads, 2"),
        ("estimator.embed_dim", 10**12, "it must be a whole number in 1"),
        ("estimator.embed_dim", 48, "estimator has category_size|estimator has .* of shape"),
        ("estimator.depths", [2] * 1000, "it must be 1 to 16 values"),
        ("estimator.depths", [2, 3], "estimator lacks group_1/layer_1/norm_tokens"),
        ("estimator.depths", [2, 1], "estimator has a surplus group_1/layer_0/norm_tokens"),
        ("estimator.depths", 2, "it must be 1 to 16 values"),
        ("estimator.window_size", 0, "it must be a whole number in 2"),
        ("estimator.convffn_kernel_size", 4, "it must be an odd number"),
        ("estimator.mlp_ratio", {}, "it must be above 0 and at most 16"),
        ("model.width", 33, "it must be a multiple of 32"),
        ("model.multipliers", [1, 2, 2], "give one of each for every level"),
        ("model.residual", "no", "it must be True or False"),
    ],
)
def test_a_config_that_can_not_be_is_refused(model, key, value, message):
    config = json.loads((model / "config.json").read_text())
    *path, last = key.split(".")
    block = config
    for name in path:
        block = block[name]
    block[last] = value
    replace_file(model, "config.json", json.dumps(config).encode())
    assert re.search(message, refusal(model))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(24, np.nan, np.float32), "no finite floats in norm/bias"),
        (np.full(24, np.inf, np.float16), "no finite floats in norm/bias"),
        (np.ones(24, np.int32), "no finite floats in norm/bias"),
        (np.ones(24, bool), "no finite floats in norm/bias"),
        (np.ones((24, 1), np.float32), r"norm/bias of shape \(24, 1\) instead of \(24,\)"),
    ],
)
def test_weights_that_can_not_be_are_refused(model, array, message):
    arrays = load_file(model / "model.safetensors")
    replace_file(model, "model.safetensors", save({**arrays, "estimator/norm/bias": array}))
    assert re.search(message, refusal(model))


def test_an_array_in_place_of_a_network_is_refused(model):
    replace_file(model, "model.safetensors", save({"estimator": np.ones(3, np.float32)}))
    assert "estimator is an array" in refusal(model)


@pytest.mark.parametrize("names", [("estimator/norm",), ("estimator",), ("estimator/norm/bias/x",)])
def test_a_name_that_is_a_path_s_beginning_is_refused(model, names):
    arrays = load_file(model / "model.safetensors")
    more = dict.fromkeys(names, np.ones(1, np.float32))
    replace_file(model, "model.safetensors", save({**more, **arrays}))
    refusal(model)
    replace_file(model, "model.safetensors", save({**arrays, **more}))
    refusal(model)


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
save_model(sys.argv[1], None, {"a": np.zeros(9)}, overwrite=True)
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
        assert load_file(model / "model.safetensors")["a"].shape == (9,)
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
