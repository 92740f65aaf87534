"""Read pickles of NumPy arrays without trusting them: no code of theirs ever runs."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

# What NumPy names in the pickle of an array; NumPy 2 moved `numpy.core` to `numpy._core`.
EMPTY_ARRAY_FN = np.empty(0).__reduce__()[0]
ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): EMPTY_ARRAY_FN,
    ("numpy._core.multiarray", "_reconstruct"): EMPTY_ARRAY_FN,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class NumpyUnpickler(pickle.Unpickler):
    """Unpickle arrays; every other class or function is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name} but may hold only arrays")
        return ARRAY_PARTS[module, name]


def load_numpy_pickle(path: str | Path, sha256: str) -> Any:
    """Load a pickle of NumPy arrays in dicts, lists and tuples.

    Raises ValueError if the file's SHA-256 is not `sha256` or the pickle holds anything else.
    """
    content = Path(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} is not the expected file: its SHA-256 is {found}, not {sha256}.")
    try:
        return NumpyUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a crafted pickle can raise anything
        raise ValueError(f"{path} was not loaded: {error}.") from error
