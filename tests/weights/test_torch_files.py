"""These tests need PyTorch; conftest.py leaves the file out where it is not installed."""

import os
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch  # pyright: ignore[reportMissingImports]
from golden import manifest, weights
from safetensors.numpy import save_file

from configs import tiny
from upsr_jax.convert import (
    denoiser_from_torch,
    denoiser_to_torch,
    estimator_from_torch,
    estimator_to_torch,
)
from upsr_jax.weights.convert_files import convert_files
from upsr_jax.weights.torch_files import read_torch, write_torch


class Command:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_moving_averages_are_preferred_and_prefixes_stripped(tmp_path):
    content = {"params": {"module.a": torch.zeros(2)}, "params_ema": {"module.a": torch.ones(2)}}
    torch.save(content, tmp_path / "x.pth")
    arrays, key = read_torch(tmp_path / "x.pth")
    assert key == "params_ema"
    np.testing.assert_array_equal(arrays["a"], np.ones(2, np.float32), strict=True)


@pytest.mark.parametrize("key", ["params", ""])
def test_other_layouts_are_read(tmp_path, key):
    entries = {"a": torch.nn.Parameter(torch.arange(3.0))}
    torch.save({key: entries} if key else entries, tmp_path / "x.pth")
    arrays, found = read_torch(tmp_path / "x.pth")
    assert found == key
    np.testing.assert_array_equal(arrays["a"], np.arange(3, dtype=np.float32), strict=True)


def test_old_file_format_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_torch(tmp_path / "x.pth").arrays["a"], [1, 1])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64, np.int64])
def test_dtypes_come_back(tmp_path, dtype):
    arrays = {"a": np.linspace(-300, 300, 12).reshape(3, 4).astype(dtype), "b": np.array(2, dtype)}
    write_torch(tmp_path / "x.pth", arrays)
    loaded, key = read_torch(tmp_path / "x.pth")
    assert key == "params_ema"
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_views_are_read_and_written_in_order(tmp_path):
    """PyTorch stores strides; the arrays must not depend on them."""
    expected = np.arange(6, dtype=np.float32).reshape(2, 3).T
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "x.pth")
    np.testing.assert_array_equal(read_torch(tmp_path / "x.pth").arrays["a"], expected)
    write_torch(tmp_path / "y.pth", {"a": expected})
    np.testing.assert_array_equal(read_torch(tmp_path / "y.pth").arrays["a"], expected)


def test_safetensors_are_read(tmp_path):
    save_file({"module.a": np.ones(2, np.float16)}, tmp_path / "x.safetensors")
    arrays = read_torch(tmp_path / "x.safetensors").arrays
    np.testing.assert_array_equal(arrays["a"], np.ones(2, np.float16), strict=True)


def save_raw(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def save_old(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_old, save_raw])
def test_code_is_refused_and_never_run(tmp_path, save):
    trace = tmp_path / "trace"
    save({"params_ema": {"a": Command(f"touch {trace}")}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth was refused and nothing in it was run"):
        read_torch(tmp_path / "x.pth")
    assert not trace.exists()


def test_the_refused_file_would_have_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save(Command(f"touch {trace}"), tmp_path / "x.pth")
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert trace.exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("save", [torch.save, save_old])
def test_truncated_files_are_refused(tmp_path, save, share):
    save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"x\.pth (is damaged|was refused)"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{"params": 3}, [1, 2], {"a": "text"}, {"a": {"b": {}}}])
def test_files_of_other_things_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no state dict"):
        read_torch(tmp_path / "x.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.pth is missing"):
        read_torch(tmp_path / "x.pth")


def test_failed_write_leaves_the_previous_file(tmp_path, monkeypatch):
    write_torch(tmp_path / "x.pth", {"a": np.zeros(2)})

    def fail(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        write_torch(tmp_path / "x.pth", {"a": np.ones(2)})
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pth"]
    np.testing.assert_array_equal(read_torch(tmp_path / "x.pth").arrays["a"], [0, 0])


def state_dict(name: str, from_torch, to_torch, config, dtype) -> dict[str, np.ndarray]:
    """Give a network's state dict with buffers, as PyTorch would save it."""
    arrays = {key: array.astype(dtype) for key, array in weights(name).items()}
    return to_torch(from_torch(arrays, config), config)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_pth_to_folder_and_back_is_the_same_bytes(tmp_path, dtype):
    config = tiny.get_config()
    originals = {
        "upsr.pth": state_dict(
            "unet_tiny", denoiser_from_torch, denoiser_to_torch, config.model.to_dict(), dtype
        ),
        "atd_real.pth": state_dict(
            "atd_tiny", estimator_from_torch, estimator_to_torch, config.estimator.to_dict(), dtype
        ),
    }
    for name, arrays in originals.items():
        write_torch(tmp_path / name, {f"module.{key}": x for key, x in arrays.items()})
    convert_files([tmp_path / name for name in originals], tmp_path / "model")
    report = convert_files([tmp_path / "model"], tmp_path / "back")
    assert len(report) == 2

    for name, arrays in originals.items():
        content = torch.load(tmp_path / "back" / name, weights_only=True)
        assert content.keys() == {"params_ema"}
        back = read_torch(tmp_path / "back" / name).arrays
        assert list(back) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(back[key], array, strict=True)
            assert back[key].tobytes() == array.tobytes()

    with pytest.raises(FileExistsError, match=r"upsr\.pth exists already"):
        convert_files([tmp_path / "model"], tmp_path / "back")


def test_written_file_has_the_released_names_and_types(tmp_path):
    config = tiny.get_config().model.to_dict()
    arrays = state_dict("unet_tiny", denoiser_from_torch, denoiser_to_torch, config, np.float32)
    write_torch(tmp_path / "x.pth", arrays)
    content = torch.load(tmp_path / "x.pth", weights_only=True)["params_ema"]
    found = [(name, list(x.shape), str(x.dtype)) for name, x in content.items()]
    expected = [(e["name"], e["shape"], f"torch.{e['dtype']}") for e in manifest("unet_tiny")]
    assert found == expected
