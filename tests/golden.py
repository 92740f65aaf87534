"""Read goldens: numbers computed in float64 with PyTorch, stored as float32, in NCHW.

Large outputs are kept at every third row and column only, large gradients at every fifth number:
compare them with `thin_image` and `thin_gradient` of one's own.
"""

import json
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from goldens.seeded_weights import seeded_normal, seeded_state_dict

FOLDER = Path(__file__).parent / "goldens"
SEED = 2025


def golden(name: str) -> dict[str, np.ndarray]:
    """Load one file of arrays."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def manifest(name: str) -> list[dict]:
    """List name, shape, dtype and kind of every entry of a state dict, in order."""
    return json.loads((FOLDER / "manifests" / f"{name}.json").read_text())


def weights(name: str) -> dict[str, np.ndarray]:
    """Draw the seeded float64 weights behind a network's goldens, as a PyTorch state dict."""
    return seeded_state_dict(str(FOLDER / "manifests" / f"{name}.json"), SEED)


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a seeded input, in PyTorch's layout, as float64."""
    return seeded_normal(name, shape, SEED).astype(np.float64)


def nhwc(x: np.ndarray) -> np.ndarray:
    """Move a PyTorch batch of images to our layout, as float64."""
    return rearrange(x, "b c h w -> b h w c").astype(np.float64)


def thin_image(x: np.ndarray | jax.Array) -> np.ndarray:
    """Keep every third row and column of a batch in our layout."""
    return np.asarray(x)[:, ::3, ::3]


def thin_gradient(gradient: np.ndarray) -> np.ndarray:
    """Keep every fifth number of an array in PyTorch's layout."""
    return np.ravel(gradient)[::5]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return ‖actual - expected‖ / ‖expected‖."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
