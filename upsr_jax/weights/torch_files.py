"""Read and write PyTorch state dicts as NumPy arrays. PyTorch itself is imported when needed."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from upsr_jax.files.whole import whole_file

PREFERRED_KEYS = ("params_ema", "params")


class StateDict(NamedTuple):
    """Names to arrays, and the `key` they lay under in the file ("" for the file's top level)."""

    arrays: dict[str, np.ndarray]
    key: str


def read_torch(path: str | Path) -> StateDict:
    """Read a .pth or .safetensors file of weights; no code that a .pth may hold is ever run.

    Moving averages (`params_ema`) are preferred to `params`, the prefix `module.` is stripped and
    every dtype is kept, bfloat16 too. Raises ImportError if PyTorch is needed and not installed,
    FileNotFoundError, and ValueError if the file is damaged or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing or is not a file")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pth(path)
    key = ""
    if isinstance(content, Mapping):
        key = next((key for key in PREFERRED_KEYS if key in content), "")
    entries = content[key] if key else content
    if not isinstance(entries, Mapping) or not all(hasattr(x, "shape") for x in entries.values()):
        raise ValueError(f"{path} holds no state dict: tensors by name, maybe under params_ema")
    arrays = {name.removeprefix("module."): _to_numpy(x) for name, x in entries.items()}
    return StateDict(arrays, key)


def write_torch(
    path: str | Path, arrays: Mapping[str, np.ndarray], key: str = "params_ema"
) -> None:
    """Write arrays to a .pth file under `key`, bit for bit; it appears whole or not at all."""
    torch = _import_torch()
    with whole_file(Path(path)) as file:
        torch.save({key: {name: _to_tensor(torch, x) for name, x in arrays.items()}}, file)


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _load_pth(path: Path) -> Any:
    torch = _import_torch()
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd pickles, which fail anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else "its pickle is not one of tensors"
        raise ValueError(
            f"{path} was refused and nothing in it was run: {reason}, where only weights may be. "
            "Save the state dict alone"
        ) from error
    except Exception as error:  # PyTorch's many ways to stumble over a damaged file
        raise ValueError(
            f"{path} is damaged or no PyTorch file ({type(error).__name__}): download it again"
        ) from error


def _import_torch() -> ModuleType:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("PyTorch files need PyTorch: pip install 'upsr_jax[convert]'") from error
    return torch


def _to_numpy(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    if str(tensor.dtype) == "torch.bfloat16":  # JAX's NumPy dtype, which PyTorch doesn't know
        return tensor.detach().float().numpy().astype(jnp.bfloat16)
    return tensor.detach().numpy()


def _to_tensor(torch: ModuleType, array: np.ndarray) -> Any:
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array.copy())
