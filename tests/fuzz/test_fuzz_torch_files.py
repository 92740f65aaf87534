"""A damaged file of weights is read as what it holds, or refused in one sentence.

`FUZZ_TORCH_FILES=10000 pytest tests/fuzz/test_fuzz_torch_files.py` makes so many of each kind.
"""

import os
import pickle
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import mutate
from pth import dump, save_old, save_pth, tensor, write_zip
from safetensors.numpy import save

from upsr_jax.weights.torch_files import Unknown, read_torch, write_torch

COUNT = int(os.environ.get("FUZZ_TORCH_FILES", "100"))
SECONDS, BYTES = 5, 2**29  # of the processor for one file, and of memory for all
ARRAYS = {
    "layer.0.weight": np.arange(24, dtype=np.float32).reshape(4, 6).T,
    "layer.0.bias": np.full(6, 0.5, np.float32),
    "layer.0.index": np.arange(9).reshape(3, 3),
}
KINDS = {"FloatStorage": np.float32, "LongStorage": np.int64}


def content() -> dict[str, Any]:
    names = {np.dtype(dtype): name for name, dtype in KINDS.items()}
    arrays = {name: tensor(x, kind=names[x.dtype]) for name, x in ARRAYS.items()}
    return {"epoch": 3, "params_ema": arrays, "loss": [0.5, None, (1, True)]}


def damage_pickle(path: Path, rng: np.random.Generator) -> None:
    """Damage what only an attacker can, as a checksum is over it."""
    pickled, storages = dump(content(), int(rng.integers(2, 6)))
    write_zip(path, mutate(pickled, rng), [storage.data for storage in storages])


def damage_file(path: Path, rng: np.random.Generator, kind: str) -> None:
    if kind == "safetensors":
        path.write_bytes(save({name: np.array(x, order="C") for name, x in ARRAYS.items()}))
    elif kind == "written":
        write_torch(path, ARRAYS)
    else:
        {"zip": save_pth, "old": save_old}[kind](content(), path)
    path.write_bytes(mutate(path.read_bytes(), rng))


ran: list[str] = []


def watch(event: str, _: Any) -> None:
    if event in ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen"):
        ran.append(event)


@pytest.mark.parametrize("kind", ["zip", "written", "old", "safetensors", "pickle"])
def test_damaged_weights(kind, tmp_path):
    path, refused = tmp_path / "x.pth", 0
    sys.addaudithook(watch)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(COUNT):
        rng = np.random.default_rng(seed)
        damage_pickle(path, rng) if kind == "pickle" else damage_file(path, rng, kind)
        ran.clear()
        start = time.process_time()
        try:
            found = read_torch(path)
        except (ValueError, OSError) as error:
            refused += 1
            message = str(error)
            assert str(path) in message and message.isprintable() and len(message) < 3000, seed
        else:
            check(found, path, kind, seed)
        assert time.process_time() - start < SECONDS, seed
        assert not ran, (seed, ran)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * 1024 < BYTES
    assert refused > COUNT / 10  # or the damage was none


def check(found: dict[str, dict[str, Any]], path: Path, kind: str, seed: int) -> None:
    for entries in found.values():
        assert all(isinstance(x, np.ndarray | Unknown) for x in entries.values()), seed
        arrays = [x for x in entries.values() if isinstance(x, np.ndarray)]
        assert sum(np.array(x).nbytes for x in arrays) <= path.stat().st_size, seed
    if kind in ("zip", "written"):  # which have checksums, so that no wrong number is taken
        assert found.keys() == {"params_ema"}, seed
        assert found["params_ema"].keys() == ARRAYS.keys(), seed
        for name, x in ARRAYS.items():
            np.testing.assert_array_equal(found["params_ema"][name], x, strict=True)


def test_the_watch_sees_code_that_runs():
    sys.addaudithook(watch)
    ran.clear()
    pickle.loads(pickle.dumps(np.float32))
    assert ran == ["pickle.find_class"] * len(ran) and ran
