"""Save and load a model as a folder: model.safetensors, config.json and their sums in sha256.

A folder appears whole or not at all, and what is read back is what was written.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from upsr_jax.files.find import check_local
from upsr_jax.files.whole import (
    file_sha256,
    naming_full_disk,
    restore_former,
    whole_folder,
    write_json,
    write_whole,
)
from upsr_jax.models.build import CONFIG_BLOCKS, check_params
from upsr_jax.models.config import USUAL, ModelConfig

WEIGHTS, CONFIG, CHECKSUMS = "model.safetensors", "config.json", "sha256"
# What may lie beside them, without a sum: a page for a hub, and where a hub's model is from.
CARD, SOURCE = "README.md", "source.json"
MOST_CONFIG_BYTES = 2**20


def save_model(
    folder: str | Path,
    config: ModelConfig | None,
    params: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a model folder; arrays keep their dtype and are named by their path, joined by "/".

    Without a denoiser and an estimator there is no config. Raises FileExistsError if the folder
    exists, unless `overwrite` and it holds a model, whose README.md then stays.
    """
    arrays = {
        # safetensors writes a transposed view's buffer as it lies, that is, wrongly.
        name: np.asarray(leaf, order="C")
        for name, leaf in flatten_dict(params, sep="/").items()
    }
    check_local(folder)
    folder = Path(folder).resolve()
    restore_former(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder or overwrite it")
    ours = {WEIGHTS, CONFIG, CHECKSUMS, CARD, SOURCE}
    if folder.exists() and {path.name for path in folder.iterdir()} - ours:
        raise FileExistsError(f"{folder} holds other files than a model's: choose another folder")
    with naming_full_disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as part:
        write_whole(part / WEIGHTS, save(arrays))
        write_json(part / CONFIG, config.as_dict() if config else {})
        sums = [f"{file_sha256(part / name)}  {name}\n" for name in (WEIGHTS, CONFIG)]
        write_whole(part / CHECKSUMS, "".join(sums).encode())
        if (folder / CARD).is_file():
            write_whole(part / CARD, (folder / CARD).read_bytes())


def load_model(
    folder: str | Path, dtype: DTypeLike | None = np.float32, check_weights: bool = True
) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model folder after checking its sums, its config and that the weights are its.

    Returns the config and the params as nested dicts of NumPy arrays in `dtype` (None: as they are
    stored). Raises FileNotFoundError or ValueError, naming the file, if one is missing, damaged or
    doesn't belong there. `check_weights` takes a second or more and is for folders of others.
    """
    folder = Path(folder)
    check_sums(folder)
    try:
        if (folder / CONFIG).stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError(f"{CONFIG} is larger than {MOST_CONFIG_BYTES:,} bytes")
        params = unflatten_dict(load_file(folder / WEIGHTS), sep="/")
        if not params.keys() & CONFIG_BLOCKS.keys():
            raise ValueError(f"it holds neither denoiser nor estimator but {', '.join(params)}")
        config = ModelConfig.of(json.loads((folder / CONFIG).read_bytes()))
        if check_weights:
            check_params(config, params)
    except (ValueError, TypeError, LookupError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} is no model folder of this program: {error}") from error
    if dtype is not None:
        params = jax.tree.map(lambda array: array.astype(dtype), params)
    return config, params


def check_sums(folder: Path) -> None:
    """Compare a model folder's files with its sums; raise FileNotFoundError or ValueError."""
    check_local(folder)
    cure = "copy, download or convert the model again"
    restore_former(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give a model's folder, or {cure}")
    for name in (WEIGHTS, CONFIG, CHECKSUMS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {cure}")
    lines = (folder / CHECKSUMS).read_text(errors="replace").splitlines()
    for name in (WEIGHTS, CONFIG):
        if f"{file_sha256(folder / name)}  {name}" not in lines:
            raise ValueError(f"{folder / name} is damaged, as its SHA-256 shows: {cure}")


def load_networks(folder: str | Path, config: ModelConfig, parts: Sequence[str]) -> dict[str, Any]:
    """Load params of a model folder: `parts` of "denoiser" and "estimator", as the config has them.

    Raises FileNotFoundError or ValueError if the folder is not whole, or if a network is missing
    or another one than the config's.
    """
    return take_networks(folder, *load_model(folder), config, parts)


def take_networks(
    name: str | Path,
    stored: ModelConfig,
    params: Mapping[str, Any],
    config: ModelConfig,
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


def check_same(name: str | Path, stored: ModelConfig, config: ModelConfig, block: str) -> None:
    """Raise ValueError, with both values, where `name` is of another config.`block` than wanted."""
    found, wanted = getattr(stored, block) or {}, getattr(config, block) or {}
    differences = [
        f"{key} {found.get(key)} instead of {wanted.get(key)}"
        for key in wanted | found
        if found.get(key) != wanted.get(key)
    ]
    if differences:
        raise ValueError(f"{name} has another config.{block}: {', '.join(differences)}")


def check_same_diffusion(name: str | Path, stored: ModelConfig, config: ModelConfig) -> None:
    """Raise ValueError where `name` was trained for another diffusion than the config's."""
    check_same(name, stored, config, "diffusion")
    before, now = (USUAL["prior"] | one.prior for one in (stored, config))
    for key in ("un", "estimate", "condition"):  # min_noise is free
        if before[key] != now[key]:
            raise ValueError(
                f"{name} was trained with config.prior.{key} = {before[key]}, not {now[key]}: "
                "set it so"
            )
