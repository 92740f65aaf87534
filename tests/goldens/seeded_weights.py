"""Deterministic weights for a manifest of parameter names and shapes.

A golden file stores inputs and outputs only. The weights behind them are drawn here, from the
parameter's name, its shape and a seed, with nothing but NumPy, so that no weight file is needed.
"""

import json
import zlib

import numpy as np


def seeded_normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A standard normal float32 array that depends on its arguments alone (for inputs)."""
    rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), seed]))
    return rng.standard_normal(shape).astype(np.float32)


def seeded_array(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draws one parameter as float64, the same on every machine.

    Args:
      name: the parameter's full name in the PyTorch state dict.
      shape: its PyTorch shape.
      seed: any non-negative integer; another seed gives another network.
    """
    rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), seed]))
    noise = rng.standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "td":  # token dictionary
        return noise
    if leaf == "relative_position_bias_table":
        return 0.5 * noise
    if leaf == "logit_scale":
        return np.log(10.0) + 0.1 * noise
    if leaf == "scale":
        return 0.5 + 0.3 * noise
    if leaf == "sigma":
        return 0.5 * noise
    if leaf == "bias":
        return 0.1 * noise
    if len(shape) == 1:  # the gain of a normalization layer
        return 1.0 + 0.1 * noise
    return noise / np.sqrt(np.prod(shape[1:]))


def seeded_state_dict(manifest_path: str, seed: int) -> dict[str, np.ndarray]:
    """All parameters of a manifest (its buffers left out), name -> float64 array."""
    with open(manifest_path) as file:
        entries = json.load(file)
    return {
        entry["name"]: seeded_array(entry["name"], tuple(entry["shape"]), seed)
        for entry in entries
        if entry["kind"] == "parameter"
    }
