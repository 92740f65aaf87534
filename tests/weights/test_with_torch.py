"""Files are those of PyTorch itself; conftest.py leaves this out where it is not installed."""

import pickle
from collections import Counter, OrderedDict
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch  # pyright: ignore[reportMissingImports]
from golden import manifest, weights

from configs import tiny
from upsr_jax.convert import (
    denoiser_from_torch,
    denoiser_to_torch,
    estimator_from_torch,
    estimator_to_torch,
)
from upsr_jax.weights.convert_files import convert_files
from upsr_jax.weights.torch_files import Unknown, read_torch, write_torch


def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_newest(content, path):
    torch.save(content, path, pickle_protocol=pickle.HIGHEST_PROTOCOL)


DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8),
]


@pytest.mark.parametrize("save", [torch.save, save_old, save_newest])
def test_what_pytorch_saves_is_read(tmp_path, save):
    base = torch.linspace(-300, 300, 24)
    content = {str(dtype): base.to(dtype).reshape(2, 3, 4).permute(2, 0, 1) for dtype in DTYPES}
    content |= {
        "parameter": torch.nn.Parameter(base),
        "view": base[3:9],
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
    }
    save({"state_dict": OrderedDict(content)}, tmp_path / "x.pth")
    entries = read_torch(tmp_path / "x.pth")["state_dict"]
    assert list(entries) == list(content)
    for name, expected in content.items():
        found = entries[name]
        assert isinstance(found, np.ndarray) and found.shape == expected.shape
        assert str(expected.dtype) == f"torch.{found.dtype}"
        np.testing.assert_array_equal(found.astype(float), expected.detach().double().numpy())


def test_a_training_state_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5])
    assert isinstance(scheduler.state_dict()["milestones"], Counter)
    content = {
        "epoch": 1,
        "model": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "rng": torch.get_rng_state(),
        "numpy_scalar": np.float64(3),
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
    }
    torch.save(content, tmp_path / "x.pth")
    found = read_torch(tmp_path / "x.pth")["model"]
    assert list(found) == list(model.state_dict())
    np.testing.assert_array_equal(found["0.weight"], model[0].weight.detach().numpy())


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_what_is_no_dense_tensor_is_named(tmp_path):
    content = {
        "a": torch.ones(1),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.ones(3, device="meta"),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "complex": torch.ones(3, dtype=torch.complex64),
        "negative": torch._neg_view(torch.ones(3)),
    }
    torch.save(content, tmp_path / "x.pth")
    entries = read_torch(tmp_path / "x.pth")[""]
    assert entries.keys() == content.keys()
    assert [name for name, x in entries.items() if not isinstance(x, Unknown)] == ["a"]


@pytest.mark.parametrize("save", [torch.save, save_old])
def test_whole_modules_are_refused(tmp_path, save):
    save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"but torch\.nn\.modules\.linear\.Linear"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int64])
def test_pytorch_reads_what_is_written(tmp_path, dtype, mmap):
    arrays = {"a": np.arange(6).reshape(2, 3).T.astype(dtype), "b": np.array(2, dtype)}
    write_torch(tmp_path / "x.pth", arrays)
    content = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap)
    assert content.keys() == {"params_ema"} and list(content["params_ema"]) == ["a", "b"]
    for name, array in arrays.items():
        found = content["params_ema"][name]
        assert found.is_contiguous() and str(found.dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(found.double().numpy(), array.astype(float), strict=True)


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
        back: Any = read_torch(tmp_path / "back" / name)["params_ema"]
        assert list(back) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(back[key], array, strict=True)
            assert back[key].tobytes() == array.tobytes()


def test_written_file_has_the_released_names_and_types(tmp_path):
    config = tiny.get_config().model.to_dict()
    arrays = state_dict("unet_tiny", denoiser_from_torch, denoiser_to_torch, config, np.float32)
    write_torch(tmp_path / "x.pth", arrays)
    content = torch.load(tmp_path / "x.pth", weights_only=True)["params_ema"]
    found = [(name, list(x.shape), str(x.dtype)) for name, x in content.items()]
    expected = [(e["name"], e["shape"], f"torch.{e['dtype']}") for e in manifest("unet_tiny")]
    assert found == expected
