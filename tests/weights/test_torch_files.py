"""Files of PyTorch's weights are read as they are meant, or refused in one sentence."""

import json
import os
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from pth import Call, save_old, save_pth, tensor, write_zip
from safetensors.numpy import save_file

from upsr_jax.weights.torch_files import Unknown, read_torch, write_torch

ONES = np.ones(2, np.float32)


def read_one(path: Path) -> dict:
    (entries,) = read_torch(path).values()
    return entries


@pytest.mark.parametrize("save", [save_pth, save_old])
def test_state_dicts_are_found_in_what_is_around_them(tmp_path, save):
    content = {
        "epoch": 3,
        "net_g": {"params": {"a": tensor(0 * ONES)}, "params_ema": OrderedDict(a=tensor(ONES))},
        "optimizer": {"state": {0: {"step": tensor(ONES)}}, "lr": [1e-4, (1, None, True)]},
        "callbacks": {Call("collections.Counter", {1: 2}): 2, 3.5: 1, "best": float("inf")},
    }
    found = read_torch(save(content, tmp_path / "x.pth"))
    assert list(found) == ["net_g.params", "net_g.params_ema"]
    np.testing.assert_array_equal(found["net_g.params_ema"]["a"], ONES, strict=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_protocols_of_pickles_are_read(tmp_path, protocol):
    content = {"a": tensor(ONES), "b": Call("torch._utils._rebuild_parameter", tensor(ONES), True)}
    entries = read_one(save_pth(content, tmp_path / "x.pth", protocol))
    for name in "ab":
        np.testing.assert_array_equal(entries[name], ONES, strict=True)


DTYPES = [np.float16, jnp.bfloat16, np.float32, np.float64, np.int64, np.bool_]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_come_back(tmp_path, dtype):
    arrays = {"a": np.linspace(-300, 300, 12).reshape(3, 4).astype(dtype), "b": np.array(2, dtype)}
    write_torch(tmp_path / "x.pth", {**arrays, "c": arrays["a"].T})
    loaded = read_torch(tmp_path / "x.pth")["params_ema"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)
    np.testing.assert_array_equal(loaded["c"], arrays["a"].T, strict=True)


def test_views_are_read_as_they_look(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    content = {"a": tensor(numbers, (2, 3), (1, 4), 1)}
    a = read_one(save_pth(content, tmp_path / "x.pth"))["a"]
    np.testing.assert_array_equal(a, [[1, 5, 9], [2, 6, 10]])


@pytest.mark.parametrize("name", ["x.safetensors", "X.SAFETENSORS", "x.pth", "x"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    save_file({"a": np.ones(2, np.float16)}, tmp_path / name)
    np.testing.assert_array_equal(read_one(tmp_path / name)["a"], np.ones(2, np.float16))


def test_what_is_no_dense_tensor_is_named(tmp_path):
    """Such entries are some other part of a file, or refused with the network that they are of."""
    content = {
        "a": tensor(ONES),
        "sparse": Call("torch._utils._rebuild_sparse_tensor", "layout", (tensor(ONES),)),
        "complex": tensor(np.ones(2, np.complex64), kind="ComplexFloatStorage"),
        "conjugate": Call(
            "torch._utils._rebuild_tensor_v2", *tensor(ONES).arguments, {"neg": True}
        ),
        "step": 3,
    }
    entries = read_one(save_pth(content, tmp_path / "x.pth"))
    assert isinstance(entries.pop("a"), np.ndarray)
    assert entries == {
        "sparse": Unknown("torch._utils._rebuild_sparse_tensor"),
        "complex": Unknown("torch.ComplexFloatStorage"),
        "conjugate": Unknown("torch._utils._rebuild_tensor_v2"),
        "step": Unknown("int"),
    }


def test_float8_in_safetensors_is_named(tmp_path):
    a = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    b = {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}
    header = json.dumps({"a": a, "b": b}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bytes(6))
    assert read_one(tmp_path / "x") == {"a": Unknown("F8_E4M3"), "b": np.zeros(1, np.float32)}


@pytest.mark.parametrize("save", [save_pth, save_old])
def test_no_code_is_run(tmp_path, save, monkeypatch):
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("it ran"))
    content = {"params": {"a": Call("os.system", "x"), Call("os.system", "y"): 3}}
    save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no tensors by name, but the keys params"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"params": 3, "config": {}}, "the keys params, config"),
        ([1, 2], "a list"),
        ({3: tensor(ONES)}, "the keys of none"),
        ({"a\x1b[31m": tensor(ONES)}, "the keys of none"),
        (Call("torch.nn.modules.linear.Linear"), r"torch\.nn\.modules\.linear\.Linear"),
        (Call("posix.system", "x"), r"posix\.system"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path, content, found):
    save_pth(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth holds no tensors by name, but {found}$"):
        read_torch(tmp_path / "x.pth")


def test_a_tensor_is_not_left_out_for_its_key(tmp_path):
    save_pth({"net": {"a": tensor(ONES), 3: tensor(ONES)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth .*some tensors of net are not under text names"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs's note"),
        (b"\n<!DOCTYPE html><html><body>Quota exceeded", "a web page"),
        (b"<html>404", "a web page"),
        (b"Not found", "neither a PyTorch nor a safetensors file"),
    ],
)
def test_failed_downloads_are_told(tmp_path, content, reason):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.pth is .*{reason}.*: the download failed"):
        read_torch(tmp_path / "x.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.pth is missing"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((3,), (1,), 0), ((2,), (1,), 1), ((2,), (-1,), 0), ((-1,), (1,), 0), ((2,), (1,), -1)],
)
def test_views_of_more_than_there_is_are_refused(tmp_path, shape, strides, offset):
    save_pth({"a": tensor(ONES, shape, strides, offset)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth is damaged"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("count", "shape", "strides"), [(0, (6,), (1,)), (2, (5,), (2**60,)), (2, (5, 1), (2**60, 1))]
)
def test_no_other_memory_is_read(tmp_path, count, shape, strides):
    """NumPy would: of an empty storage, and where strides overflow."""
    save_pth({"a": tensor(np.zeros(count, np.float32), shape, strides)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth is damaged .* beyond its storage"):
        read_torch(tmp_path / "x.pth")


def refuse(path: Path, match: str) -> None:
    """Check that a file is refused in little time."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=match):
        read_torch(path)
    assert time.monotonic() - start < 10


def test_memory_is_bounded_by_what_a_file_has(tmp_path):
    zeros = np.zeros(1, np.float32)
    save_pth({"net": {"a": tensor(zeros, (10**9,), (0,))}}, tmp_path / "expanded.pth")
    content = {"a": tensor(np.zeros(2**26, np.float32))}
    save_pth(content, tmp_path / "zipped.pth", compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        refuse(tmp_path / "expanded.pth", r"expanded\.pth has .* its net would take 4,000,000,000")
        refuse(tmp_path / "zipped.pth", "parts overlap or are compressed")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_pickles_that_are_deep_or_long_are_refused(tmp_path):
    """PyTorch's reader takes 50 s for them, and Python's own breaks down at a nested key."""
    pickles = {
        "but a list": b"]" * 10**5 + b"a" * (10**5 - 1),
        "but the keys of none": b"})" + b"\x85" * 10**5 + b"K\x01s",  # a tuple in a tuple in ...
        "but the keys": b"}r\xff\xff\xff\x7f",  # the place 2,147,483,647 of a list, in C
        "more than weights": b"N" * 2**20,
    }
    level = b"}(" + b"".join(b"X\1\0\0\0%ch\0" % i for i in range(32, 127)) + b"u"
    pickles["but the keys  , !"] = b"}q\0" + 4 * (level + b"q\0")  # 95 times 95 times ...
    for match, pickled in pickles.items():
        write_zip(tmp_path / "x.pth", b"\x80\x02" + pickled + b".", [])
        refuse(tmp_path / "x.pth", match)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("save", [save_pth, save_old])
def test_truncated_files_are_refused(tmp_path, save, share):
    content = save({"a": tensor(np.ones(1000, np.float32))}, tmp_path / "whole.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"x\.pth is (damaged|empty)"):
        read_torch(tmp_path / "x.pth")


def test_failed_write_leaves_the_previous_file(tmp_path, monkeypatch):
    write_torch(tmp_path / "x.pth", {"a": np.zeros(2)})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="no space left"):
        write_torch(tmp_path / "x.pth", {"a": np.ones(2)})
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pth"]
    np.testing.assert_array_equal(read_one(tmp_path / "x.pth")["a"], [0, 0])
