"""Convert PyTorch files to a model folder and back: what `upsr convert` does.

What a network is, and how large, is read off the names and shapes of its weights.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from upsr_jax.convert import (
    Buffer,
    denoiser_from_torch,
    denoiser_table,
    denoiser_to_torch,
    estimator_from_torch,
    estimator_to_torch,
    lpips_from_torch,
)
from upsr_jax.files.find import check_local
from upsr_jax.files.whole import file_sha256, naming_full_disk, remove_parts
from upsr_jax.models.attention import SHIFT_REGIONS
from upsr_jax.models.build import CONFIG_BLOCKS
from upsr_jax.models.config import USUAL, ModelConfig
from upsr_jax.weights.model_folder import WEIGHTS, load_model, save_model
from upsr_jax.weights.torch_files import read_torch, write_torch

# What the released model was trained and tested with and its weights don't show.
RELEASED = {
    "dtype": "float32",
    "prior": {"un": 0.1, "min_noise": 0.4},
    "diffusion": {"steps": 5, "kappa": 2.5, "power": 0.2, "min_noise_level": 0.2, "end": 0.99},
    "sampler": {"method": "ddim", "steps": 5},
}
RELEASED_NOMINAL_SIZE = 64
RELEASED_CATEGORY_SIZE = 128

# An entry that only this kind of network has.
MARKS = {
    "denoiser": "input_blocks.0.0.weight",
    "estimator": "layers.0.residual_group.td",
    "lpips": "lin0.model.1.weight",
}
# What DataParallel, torch.compile, FSDP and checkpointing put into the names of weights.
WRAPPERS = r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
FLOATS = [np.dtype(t) for t in (np.float32, np.float16, jnp.bfloat16, np.float64)]
MAX_ENTRIES = 10_000  # the released networks have 600
# Position indices take the fourth power of a window, masks the square of both; the released model
# has windows of 16 and maps of 64.
MAX_WINDOW, MAX_SIDE = 32, 256
TORCH_FILES = {"denoiser": "upsr.pth", "estimator": "atd_real.pth"}


def convert_files(sources: Sequence[Path], destination: Path, overwrite: bool = False) -> list[str]:
    """Convert .pth or .safetensors files to one model folder, or a model folder to .pth files.

    Returns what was done, in lines for the user. Raises OSError, ImportError or ValueError, each
    with one sentence for the user, and writes nothing then.
    """
    check_local(*sources, destination)
    if len(sources) == 1 and sources[0].is_dir():
        return folder_to_torch(sources[0], destination, overwrite)
    return torch_to_folder(sources, destination, overwrite)


def torch_to_folder(sources: Sequence[Path], destination: Path, overwrite: bool) -> list[str]:
    """Convert files of one network each to a model folder; see `convert_files`."""
    config, params, report = {}, {}, []
    for source in sources:
        state_dicts = read_torch(source)
        try:
            for kind, (place, arrays) in find_networks(state_dicts).items():
                if kind in params:
                    raise ValueError(f"a second {kind}, where a model has one")
                config_block, params[kind] = to_params(kind, arrays)
                config |= config_block
                report.append(
                    f"{source}: {kind}, {len(arrays)} entries of {place or 'the file'}, "
                    f"{count(params[kind]):,} parameters, sha256 {file_sha256(source)}"
                )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    networks = [kind for kind in CONFIG_BLOCKS if kind in params]
    if networks:
        config = RELEASED | {"network": networks[0]} | config
    save_model(destination, ModelConfig.of(config) if networks else None, params, overwrite)
    report.append(f"{destination}: written, sha256 {file_sha256(destination / WEIGHTS)}")
    if "estimator" in networks:
        report.append(
            f"{destination}: category_size {RELEASED_CATEGORY_SIZE} is assumed for the estimator, "
            "as the released one has it; weights don't show it"
        )
    if networks == ["denoiser"]:
        report.append("To upscale, it needs the estimator too: convert both files to one folder")
    return report


def folder_to_torch(folder: Path, destination: Path, overwrite: bool) -> list[str]:
    """Convert a model folder to upsr.pth and atd_real.pth; see `convert_files`."""
    config, params = load_model(folder, dtype=None)
    kinds = [kind for kind in TORCH_FILES if kind in params]
    blocks = {kind: getattr(config, CONFIG_BLOCKS[kind]) for kind in kinds}
    if "denoiser" in kinds and blocks["denoiser"]["residual"]:
        raise ValueError(
            f"{folder} holds a denoiser with residual=True, which PyTorch's UPSR does not have"
        )
    if unusual := config.prior.keys() & USUAL["prior"]:
        raise ValueError(
            f"{folder} has a config.prior of its own ({', '.join(sorted(unusual))}), which "
            "PyTorch's UPSR does not have"
        )
    to_torch = {"denoiser": denoiser_to_torch, "estimator": estimator_to_torch}
    state_dicts = {kind: to_torch[kind](params[kind], blocks[kind]) for kind in kinds}
    paths = {kind: destination / TORCH_FILES[kind] for kind in kinds}
    kept = [kind for kind in kinds if not overwrite and holds(paths[kind], state_dicts[kind])]
    with naming_full_disk(destination):
        destination.mkdir(parents=True, exist_ok=True)
    remove_parts(destination)
    report = []
    for kind, arrays in state_dicts.items():
        path = paths[kind]
        if kind not in kept:
            write_torch(path, arrays)
        report.append(
            f"{path}: {kind}, {len(arrays)} entries under params_ema, "
            f"{count(params[kind]):,} parameters, sha256 {file_sha256(path)}"
        )
        size = blocks[kind].get("category_size", RELEASED_CATEGORY_SIZE)
        if size != RELEASED_CATEGORY_SIZE:
            report.append(
                f"{path}: note down category_size {size}, which the file doesn't hold; read back, "
                f"it would be taken as {RELEASED_CATEGORY_SIZE}"
            )
    return report


def holds(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Tell whether a file was written with these arrays; False if there is none.

    Raises FileExistsError if it is another file.
    """
    if not path.exists():
        return False
    with suppress(ValueError):
        found = read_torch(path).get("params_ema", {})
        if list(found) == list(arrays) and all(
            isinstance(x, np.ndarray)
            and (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
            for x, y in zip(found.values(), arrays.values(), strict=True)
        ):
            return True
    raise FileExistsError(f"{path} exists already: choose another folder or overwrite it")


def find_networks(
    state_dicts: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Find the networks in a file's state dicts, by their names: of each kind its place and arrays.

    A network may lie under any keys and, with a trainer's other weights, under any prefix. A moving
    average is preferred. Raises ValueError if there is none, or more than one of a kind.
    """
    state_dicts = {key: unwrapped(entries) for key, entries in state_dicts.items()}
    found = {}
    for kind, mark in MARKS.items():
        if kind == "lpips" and found:  # a trainer's loss
            break
        places = {
            (key, name): ".".join(filter(None, (key, name.removesuffix(mark).rstrip("."))))
            for key, entries in state_dicts.items()
            for name in entries
            if name == mark or name.endswith(f".{mark}")
        }
        average = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
        averaged = {at: place for at, place in places.items() if average.search(place)}
        places = averaged or places
        if len(places) > 1:
            raise ValueError(
                f"holds {len(places)} networks of one kind, {kind}: under "
                f"{shorten(places.values())}; save the one that you mean alone"
            )
        for (key, name), place in places.items():
            prefix = name.removesuffix(mark)
            arrays = {
                name.removeprefix(prefix): value
                for name, value in state_dicts[key].items()
                if name.startswith(prefix)
            }
            found[kind] = place, arrays
    if not found:
        contents = [
            f"{len(entries)} entries of {key or 'the file'} that begin with {shorten(entries)}"
            for key, entries in state_dicts.items()
        ]
        raise ValueError(
            f"holds no UPSR denoiser, ATD estimator or LPIPS-VGG, but {shorten(contents, '; ')}"
        )
    return found


def unwrapped(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of names what PyTorch's wrappers of modules put into them."""
    names = {name: re.sub(WRAPPERS, "", name) for name in entries}
    if len(set(names.values())) < len(names):
        first = {new: old for old, new in reversed(names.items())}
        twice = next((first[new], old) for old, new in names.items() if first[new] != old)
        raise ValueError(f"holds one entry twice, as {' and '.join(twice)}")
    return {names[name]: value for name, value in entries.items()}


def shorten(items: Iterable[str], separator: str = ", ") -> str:
    """Join the first of many items."""
    first = list(itertools.islice(items, 4))
    return separator.join(first[:3]) + (", ..." if len(first) > 3 else "")


def to_params(kind: str, state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Convert a state dict of a known kind to its config block, if it has one, and params.

    Raises ValueError if it is not a whole network of dense, finite floating-point numbers.
    """
    if len(state_dict) > MAX_ENTRIES:
        raise ValueError(f"{len(state_dict)} entries are no {kind}: at most {MAX_ENTRIES} are read")
    for name, array in state_dict.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is {array.name}, where a dense tensor of numbers must be")
        if array.size == 0 or array.ndim == 0:
            raise ValueError(f"{name} has the shape {array.shape}, which no {kind} has")
    try:
        if kind == "lpips":
            arguments, params = {}, lpips_from_torch(state_dict)
        else:
            infer = denoiser_config if kind == "denoiser" else estimator_config
            from_torch = denoiser_from_torch if kind == "denoiser" else estimator_from_torch
            arguments = infer(state_dict)
            params = from_torch(state_dict, arguments)
            arguments = {CONFIG_BLOCKS[kind]: arguments}
    except KeyError as error:
        raise ValueError(f"is no whole {kind}: {error.args[0]} is missing") from error
    except ValueError:
        raise
    except Exception as error:  # the many ways to fail at building it
        raise ValueError(
            f"has entries of shapes that no {kind} has ({str(error).partition(chr(10))[0]})"
        ) from error
    leaves: Any = flatten_dict(params, sep="/")
    for name, leaf in leaves.items():
        if leaf.dtype not in FLOATS:
            raise ValueError(f"{kind}/{name} is of {leaf.dtype}: save it as float32")
        if not np.isfinite(leaf).all():
            raise ValueError(f"{kind}/{name} holds NaN or infinity: the weights are damaged")
    return arguments, params


def denoiser_config(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Read SwinUNet's arguments off a denoiser's shapes, and off its masks if they are there.

    Raises KeyError if an entry is missing, ValueError if masks or indices are not SwinUNet's.
    """
    shape = {name: array.shape for name, array in state_dict.items()}
    width = shape["input_blocks.0.0.weight"][0]
    multipliers, num_res_blocks, new_level = [], [], True
    for n in itertools.count(1):
        if f"input_blocks.{n}.0.op.weight" in shape:
            new_level = True
            continue
        if f"input_blocks.{n}.0.out_layers.3.weight" not in shape:
            break
        if new_level:
            multipliers.append(shape[f"input_blocks.{n}.0.out_layers.3.weight"][0] // width)
            num_res_blocks.append(0)
            new_level = False
        num_res_blocks[-1] += 1

    swin = "input_blocks.1.1"
    embed_dim = shape[f"{swin}.patch_embed.proj.weight"][0]
    window_size, num_heads = window_and_heads(
        shape[f"{swin}.blocks.0.attn.relative_position_bias_table"]
    )
    mask = f"{swin}.blocks.1.attn_mask"  # [windows of a map of the nominal size, ...]
    config = {
        "width": width,
        "multipliers": tuple(multipliers),
        "num_res_blocks": tuple(num_res_blocks),
        "swin_depth": count_from_zero(shape, swin + ".blocks.{}.norm1.weight"),
        "swin_embed_dim": embed_dim,
        "swin_head_dim": embed_dim // num_heads,
        "mlp_ratio": shape[f"{swin}.blocks.0.mlp.fc1.weight"][0] // embed_dim,
        "window_size": window_size,
        "head_width": shape["conv_last.weight"][1],
        "nominal_size": window_size * math.isqrt(shape[mask][0])
        if mask in shape
        else RELEASED_NOMINAL_SIZE,
        "residual": False,
    }
    side = max(config["nominal_size"], window_size * 2 ** (len(multipliers) - 1))
    if side > MAX_SIDE or shape.get(mask, ())[1:] not in ((), (window_size**2,) * 2):
        raise ValueError(
            f"its windows of {window_size} and {len(multipliers)} levels make maps of {side}, or "
            f"its masks are of other windows: at most {MAX_SIDE} are read"
        )
    for shift_mask in SHIFT_REGIONS:
        if buffers_fit(state_dict, config | {"shift_mask": shift_mask}):
            return config | {"shift_mask": shift_mask}
    raise ValueError("its attention masks or position indices are not those of UPSR or Swin")


def buffers_fit(state_dict: Mapping[str, np.ndarray], model_config: Mapping[str, Any]) -> bool:
    """Tell whether a denoiser's masks and indices are a configuration's, or left out altogether."""
    expected = [entry for entry in denoiser_table(model_config) if isinstance(entry, Buffer)]
    found = [entry for entry in expected if entry.torch_name in state_dict]
    return not found or (
        len(found) == len(expected)
        and all(np.array_equal(state_dict[name], value) for name, value in expected)
    )


def estimator_config(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Read ATD's arguments off an estimator's shapes; raise KeyError if an entry is missing.

    category_size doesn't show in them: it is taken to be that of the released estimators.
    """
    shape = {name: array.shape for name, array in state_dict.items()}
    group = "layers.{}.residual_group"
    groups = count_from_zero(shape, group + ".td")
    layer = "layers.0.residual_group.layers.0"
    embed_dim = shape["conv_first.weight"][0]
    mlp_ratio = shape[f"{layer}.convffn.fc1.weight"][0] / embed_dim
    window_size, num_heads = window_and_heads(
        shape[f"{layer}.attn_win.relative_position_bias_table"]
    )
    return {
        "embed_dim": embed_dim,
        "depths": tuple(
            count_from_zero(shape, group.format(i) + ".layers.{}.norm1.weight")
            for i in range(groups)
        ),
        "num_heads": num_heads,
        "window_size": window_size,
        "category_size": RELEASED_CATEGORY_SIZE,
        "num_tokens": shape["layers.0.residual_group.td"][0],
        "reduced_dim": shape[f"{layer}.attn_atd.wq.weight"][0],
        "convffn_kernel_size": shape[f"{layer}.convffn.dwconv.depthwise_conv.0.weight"][-1],
        "mlp_ratio": int(mlp_ratio) if mlp_ratio.is_integer() else mlp_ratio,
    }


def window_and_heads(table_shape: tuple[int, ...]) -> tuple[int, int]:
    """Read window size and number of heads off a relative-position table [(2·win - 1)², heads]."""
    window = (math.isqrt(table_shape[0]) + 1) // 2
    if window > MAX_WINDOW:
        raise ValueError(f"its windows are of {window}: at most {MAX_WINDOW} are read")
    return window, table_shape[1]


def count_from_zero(names: Mapping[str, Any], pattern: str) -> int:
    """Count the names that `pattern` gives with 0, 1, 2, ..., up to the first that is not there."""
    return next(n for n in itertools.count() if pattern.format(n) not in names)


def count(params: Any) -> int:
    """Count the numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
