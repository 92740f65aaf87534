import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from upsr_jax.weights.published import load_numpy_pickle


class Command:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back(tmp_path, protocol: int):
    rng = np.random.default_rng(0)
    tree = {"a": {"kernel": rng.random((3, 4)).astype(np.float32)}, "b": [np.arange(5), (1, "x")]}
    sha256 = write(tmp_path / "file", pickle.dumps(tree, protocol))
    loaded = load_numpy_pickle(tmp_path / "file", sha256)
    np.testing.assert_array_equal(loaded["a"]["kernel"], tree["a"]["kernel"], strict=True)
    np.testing.assert_array_equal(loaded["b"][0], tree["b"][0], strict=True)
    assert loaded["b"][1] == (1, "x")


def test_numpy_1_names_are_known(tmp_path):
    content = pickle.dumps(np.arange(3.0), 3)
    assert b"numpy._core" in content
    sha256 = write(tmp_path / "file", content.replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(load_numpy_pickle(tmp_path / "file", sha256), [0, 1, 2])


def test_code_is_refused_and_never_run(tmp_path):
    trace = tmp_path / "trace"
    content = pickle.dumps({"a": Command(f"touch {trace}")})
    sha256 = write(tmp_path / "file", content)
    with pytest.raises(ValueError, match=r"file was not loaded: it asks for posix\.system"):
        load_numpy_pickle(tmp_path / "file", sha256)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()  # so the file above could have done it


def test_another_file_is_refused(tmp_path):
    sha256 = write(tmp_path / "file", pickle.dumps({}))
    with pytest.raises(ValueError, match="its SHA-256 is"):
        load_numpy_pickle(tmp_path / "file", sha256[::-1])


def test_damaged_file_is_refused(tmp_path):
    sha256 = write(tmp_path / "file", pickle.dumps(np.arange(100))[:-20])
    with pytest.raises(ValueError, match="file was not loaded"):
        load_numpy_pickle(tmp_path / "file", sha256)
