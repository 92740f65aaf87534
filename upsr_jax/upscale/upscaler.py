"""Upscale a photo of any size behind one call: weights, tiles and sampling.

All tiles of a picture have one shape, whose sides are multiples of 64 and no longer than the chosen
tile. So few shapes are ever compiled, with tiles of 256 at most 16. Memory on the device depends on
the tile and the batch, not on the picture.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image

from upsr_jax.cluster.devices import fitting, local_mesh, put_whole, split_rows
from upsr_jax.cluster.environment import program
from upsr_jax.files.bands import gather
from upsr_jax.files.photos import read_image, to_pixels, visible_colours
from upsr_jax.files.whole import file_sha256
from upsr_jax.models.config import ModelConfig
from upsr_jax.upscale.batcher import TileBatcher
from upsr_jax.upscale.restore import (
    SIZE_MULTIPLE,
    Restoration,
    Sampling,
    make_super_resolve,
    padded_side,
    with_sampling,
)
from upsr_jax.upscale.sizes import Wanted, alpha_rows, resize_bands, result_size, runs_twice
from upsr_jax.upscale.tiles import (
    SCALE,
    blend_bands,
    noise_window,
    pad_reflect,
    tile_grid,
    tile_side,
)
from upsr_jax.weights.model_folder import CHECKSUMS, load_model
from upsr_jax.weights.models import BUILT_IN_MODEL, find_model

LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # BT.601
TILE, OVERLAP = 256, 32  # low-resolution pixels
PRECISIONS = ("float32", "bfloat16", "auto")
ROWS = 256  # of a band that is rounded at once

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Upscaler:
    """Upscale images x4 with one model; threads that call it share its batches of tiles.

    `super_resolve(params, lr, noise)` is what `restore.make_super_resolve` makes, jitted. Images
    up to `tile` pixels a side (a multiple of 64) run whole, larger ones in tiles, whose neighbours
    share `overlap` pixels and are blended as `tiles.tile_weights` says. It always takes `batch`
    tiles of one shape, from several images or repeated where there are fewer. `recipe` names what,
    beside image, seed and tile, decides the result; `parts` are those of a Restoration that
    `restore` gives, the image first. `made_of` is what `from_params` was given.

    It can be pickled, with its weights as NumPy arrays; what loads it compiles again. In a process
    that was forked it can't run, as JAX can't.
    """

    super_resolve: Callable[..., Restoration]
    params: Any
    tile: int = TILE
    batch: int = 1
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overlap: int = OVERLAP
    blend: str = "feather"
    parts: Sequence[str] = ("image", "noise_weight")
    made_of: tuple[Any, ...] | None = dataclasses.field(default=None, repr=False, compare=False)
    _batcher: TileBatcher = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_tile(self.tile, self.overlap)
        object.__setattr__(self, "_batcher", TileBatcher(self._run, self.batch))

    def __reduce__(self) -> tuple[Any, ...]:
        params = jax.device_get(self.params)
        settings = {name: getattr(self, name) for name in ("tile", "overlap", "blend", "parts")}
        if self.made_of is None:
            others = {name: getattr(self, name) for name in ("batch", "recipe")}
            return functools.partial(Upscaler, **settings, **others), (self.super_resolve, params)
        config, *others = self.made_of
        return functools.partial(Upscaler.from_params, **settings), (config, params, *others)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        tile: int = TILE,
        device: str | None = None,
        precision: str | None = None,
        **sampling: Any,
    ) -> "Upscaler":
        """Load a model, by default the built-in one, to run on all local devices.

        `folder` is a model folder, or the name of a model as `weights.models.find_model` takes it.
        `device` is "cpu", "gpu", "tpu" or one of them by number, as "gpu:1"; `precision` of the
        networks' arithmetic is "float32", "bfloat16", or "auto", which is float32 on CPUs and
        bfloat16 elsewhere; None is what the model was trained in. The other options are those of
        `restore.Sampling`. Raises FileNotFoundError or ValueError if it is no whole model folder,
        can't sample so, or there is no such device.
        """
        check_not_forked()
        folder, config, params = load_whole_model(folder)
        options = Sampling(**sampling)
        config = with_precision(with_sampling(config, options), precision, local_mesh(device))
        return cls.from_params(
            config, params, name_model(folder), options.fidelity, device=device, tile=tile
        )

    @classmethod
    def from_params(
        cls,
        config: ModelConfig,
        params: Mapping[str, Any],
        model: str,
        fidelity: float = 0.0,
        tiles_per_device: int | None = None,
        make_program: Callable[[Callable[..., Any], Mesh], Any] = split_rows,
        device: str | None = None,
        **settings: Any,
    ) -> "Upscaler":
        """Run a model of NumPy arrays on all local devices, or on `device`.

        `model` names it in the recipe; `make_program` compiles as `devices.split_rows` does;
        `settings` are the other fields.
        """
        check_not_forked()
        mesh = local_mesh(device)
        super_resolve = make_super_resolve(config, fidelity)
        program = make_program(lambda params, tiles: super_resolve(params, *tiles), mesh)
        recipe = {
            "model": model,
            "sampler": config.sampling(),
            "prior": config.prior,
            "fidelity": fidelity,
        }
        if config.dtype != "float32":
            recipe["precision"] = config.dtype
        return cls(
            lambda params, *tiles: program(params, tiles),
            put_whole(params, mesh),
            batch=mesh.size * (tiles_per_device or cls.tiles_per_device(mesh)),
            recipe=recipe,
            made_of=(config, model, fidelity, tiles_per_device, make_program, device),
            **settings,
        )

    @staticmethod
    def tiles_per_device(mesh: Mesh | None = None) -> int:
        """Choose a batch: one tile keeps a CPU busy, and an accelerator gains from several."""
        return 1 if (mesh or local_mesh()).devices.flat[0].platform == "cpu" else 4

    @property
    def threads(self) -> int:
        """How many threads that read, call and write keep it busy.

        Twice the tiles that run at once, so that a batch fills while one runs, and one a CPU.
        """
        return 2 * self.batch + (os.cpu_count() or 1)

    def __call__(
        self,
        image: Any,
        seed: int = 0,
        *,
        scale: float | int | None = None,
        return_uncertainty: bool = False,
        on_progress: Progress | None = None,
    ) -> Any:
        """Upscale to RGB, or RGBA if the image has transparency; same seed, same bytes.

        `image` is a photo's path or bytes, read as `photos.read_image` does, a PIL image, or an
        array [h, w], [h, w, 3] or [h, w, 4] of uint8, uint16 or floats in 0..1. The result is an
        array [H, W, 3] or [H, W, 4] of the image's type, float32 for floats. Of a grey image it is
        grey, too: R = G = B. A list of images, which may run together, gives a list of results.

        `scale`, in 1..16, is 4 unless given: the model runs once, or twice above 4, and what is too
        large is reduced. With `return_uncertainty` the result is a pair with an array float32
        [h, w]: 0 where the estimator is sure of its estimate, 1 where it is least. `on_progress` is
        called from the calling thread with the pixels of the result that are done, and all of
        them; what it raises ends the work.

        Raises ValueError for any other image or scale, FloatingPointError if the model gives NaN,
        MemoryError if a batch of tiles does not fit into the device's memory, and RuntimeError in a
        process that was forked.
        """
        options = {"scale": scale, "return_uncertainty": return_uncertainty}
        if isinstance(image, list | tuple):
            call = functools.partial(self, seed=seed, on_progress=on_progress, **options)
            with ThreadPoolExecutor(max(1, min(len(image), 2 * self.batch))) as pool:
                return list(pool.map(call, image))
        pixels = _as_pixels(image)
        new = result_size(pixels.shape[0], pixels.shape[1], Wanted(scale))
        uncertainty = np.zeros(pixels.shape[:2], np.float32) if return_uncertainty else None
        bands = self.upscale_bands(pixels, new, seed, uncertainty, on_progress)
        result = gather(bands, np.empty((*new, pixels.shape[2]), pixels.dtype))
        return result if uncertainty is None else (result, uncertainty)

    def upscale_bands(
        self,
        pixels: Shaped[np.ndarray, "h w c"],
        new: tuple[int, int],
        seed: int = 0,
        uncertainty: Float32[np.ndarray, "h w"] | None = None,
        on_progress: Progress | None = None,
    ) -> Iterator[Shaped[np.ndarray, "rows W c"]]:
        """Yield the result of `new` height and width in bands from the top down, as a call does.

        `pixels` are RGB or RGBA of uint8, uint16 or float32. The uncertainty of each pixel is
        written to `uncertainty`. Raises what a call does, and ValueError where the model gives no
        uncertainty.
        """
        check_seed(seed)
        measure = None if uncertainty is None else self._measure_uncertainty(uncertainty)
        height, width = pixels.shape[:2]
        area = new[0] * new[1]
        twice = runs_twice((height, width), new)
        first_share = 1 / (1 + SCALE**2) if twice else 1.0

        def report(begin: float, end: float) -> Callable[[float], None] | None:
            tell = on_progress
            if tell is None:
                return None
            return lambda done: tell(round(area * (begin + done * (end - begin))), area)

        parts = ("image", "noise_weight") if measure else ("image",)
        bands = self.restore_bands(visible_colours(pixels), seed, report(0.0, first_share), parts)
        bands = map(measure, bands) if measure else bands
        size = SCALE * height, SCALE * width
        if twice:
            whole = np.empty((*size, 3), np.uint16)  # half as large as floats
            whole = gather((from_signed(band, np.uint16) for band in bands), whole)
            size = SCALE * size[0], SCALE * size[1]
            bands = self.restore_bands(whole, seed, report(first_share, 1.0), ("image",))
        alpha_of = alpha_rows(pixels[..., 3], new) if pixels.shape[2] == 4 else None
        top = 0
        for band in resize_bands(bands, size, new):
            for i in range(0, len(band), ROWS):
                part = from_signed(band[i : i + ROWS], pixels.dtype)
                if alpha_of is not None:
                    alpha = alpha_of(top, top + len(part))
                    part = np.dstack([part, _rounded(alpha, pixels.dtype)])
                top += len(part)
                yield part

    def _measure_uncertainty(
        self, uncertainty: Float32[np.ndarray, "h w"]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Build what takes a band of image and noise weight, notes the latter, and gives the image.

        The noise weight w_u, arXiv 2503.18512 Sec. 3, grows from `min_noise` to 1 with it.
        """
        prior = self.recipe.get("prior", {})
        least = prior.get("min_noise", 0)
        if prior.get("un") == 0 or least == 1:
            raise ValueError("this model weighs no noise, so it can't tell where it is unsure")
        width, top = uncertainty.shape[1], 0

        def measure(band: np.ndarray) -> np.ndarray:
            nonlocal top
            rows = len(band) // SCALE
            weight = band[..., 3:].reshape(rows, SCALE, width, -1).mean((1, 3))
            uncertainty[top : top + rows] = (weight - least) / (1 - least)
            top += rows
            return band[..., :3]

        return measure

    def restore(
        self, rgb: UInt8[np.ndarray, "h w 3"], seed: int
    ) -> list[Float32[np.ndarray, "4*h 4*w 3"]]:
        """Restore an image to its `parts`, in memory as a whole; raises as a call does."""
        whole = np.concatenate(list(self.restore_bands(rgb, seed)))
        return np.split(whole, len(self.parts), axis=-1)

    def restore_bands(
        self,
        rgb: Shaped[np.ndarray, "h w 3"],
        seed: int,
        on_progress: Callable[[float], None] | None = None,
        parts: Sequence[str] = (),
    ) -> Iterator[Float32[np.ndarray, "rows W c"]]:
        """Yield parts of the Restoration, joined along the channels, in bands from the top down.

        `parts` are all of the upscaler's unless given. The image of a grey one is the luma of what
        the model gives, which has a tint. `on_progress` gets the share that is done.
        Raises FloatingPointError if the model gives NaN, MemoryError as a call does.
        """
        check_not_forked()
        check_seed(seed)
        parts = parts or self.parts
        height, width = rgb.shape[:2]
        shape = self._tile_of(height), self._tile_of(width)
        padded = pad_reflect(rgb, max(height, shape[0]), max(width, shape[1]))
        tops, lefts = (
            tile_grid(length, tile, self.overlap if length > tile else 0)
            for length, tile in zip(padded.shape, shape, strict=False)
        )
        corners = list(itertools.product(tops, lefts))
        tiles = self._restore_tiles(padded, corners, shape, seed, parts, on_progress)
        rows, is_grey = SCALE * height, all((row == row[:, :1]).all() for row in rgb)
        for band in blend_bands(
            tiles,
            [SCALE * top for top in tops],
            [SCALE * left for left in lefts],
            (SCALE * shape[0], SCALE * shape[1]),
            SCALE * self.overlap,
            self.blend,
        ):
            if rows > 0:
                band = band[:rows, : SCALE * width]
                if is_grey:
                    band[..., :3] = (band[..., :3] @ LUMA)[..., None]
                yield band
            rows -= len(band)

    def describe(self, source_sha256: str, seed: int, **others: Any) -> str:
        """Name all that decides a result: program, options, and the photo by its SHA-256."""
        options = others | {
            **self.recipe,
            "tile": self.tile,
            "seed": int(seed),
            "source": source_sha256,
        }
        if (self.overlap, self.blend) != (OVERLAP, "feather"):
            options |= {"overlap": self.overlap, "blend": self.blend}
        return f"{program()} {json.dumps(options)}"

    def stop(self) -> None:
        """End the calls of other threads with CancelledError; this upscaler is of no more use."""
        self._batcher.stop()

    def _tile_of(self, side: int) -> int:
        """Return the side of the tiles along a side of a picture."""
        if side <= self.tile:
            return padded_side(side)
        if self.blend == "mean":  # the released test, whose tiles have one size
            return self.tile
        return tile_side(side, self.tile, self.overlap)

    def _restore_tiles(
        self,
        image: np.ndarray,
        corners: list[tuple[int, int]],
        shape: tuple[int, int],
        seed: int,
        parts: Sequence[str],
        on_progress: Callable[[float], None] | None,
    ) -> Iterator[Float[np.ndarray, "H W c"]]:
        """Yield the signed result of the tile at each corner, in order."""
        height, width = shape
        channels = [3 * self.parts.index(part) + c for part in parts for c in range(3)]

        def submit(top: int, left: int) -> Future:
            noise = noise_window(seed, *(SCALE * n for n in (top, left, height, width)))
            tile = to_signed(image[top : top + height, left : left + width])
            return self._batcher.submit(tile, noise)

        waiting = deque(itertools.starmap(submit, corners[: self.batch]))
        others = itertools.starmap(submit, corners[self.batch :])
        for number, (top, left) in enumerate(corners, start=1):
            result = self._batcher.wait(waiting.popleft())
            waiting.extend(itertools.islice(others, 1))
            if not np.isfinite(result).all():
                raise FloatingPointError(
                    f"the model gave NaN or infinity in the tile at row {top}, column {left}; "
                    "its weights may be damaged."
                )
            if on_progress is not None:
                on_progress(number / len(corners))
            yield result if parts == self.parts else result[..., channels]

    def _run(self, lr: np.ndarray, noise: np.ndarray) -> np.ndarray:
        batch, height, width, _ = lr.shape
        with fitting(f"{batch} tiles of {width}x{height}", "use smaller tiles"):
            restored = self.super_resolve(self.params, lr, noise)
            arrays = [np.asarray(getattr(restored, part)) for part in self.parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)


@functools.cache
def first_process() -> int:
    """Return the process that first asked for it, even in one that was forked from it."""
    return os.getpid()


def check_not_forked() -> None:
    """Raise RuntimeError in a process that was forked after JAX had started: it would hang."""
    if first_process() != os.getpid():
        raise RuntimeError(
            "an Upscaler can't run in a forked process, as JAX can't: start processes with "
            "multiprocessing.get_context('spawn') and give them the Upscaler, or make it there"
        )


def load_whole_model(model: str | Path | None) -> tuple[Path, ModelConfig, dict[str, Any]]:
    """Find and load a model with all that upscaling needs; return its folder, config and params.

    Raises as `Upscaler.from_pretrained` does.
    """
    folder = find_model(model)
    config, params = load_model(folder, check_weights=folder != BUILT_IN_MODEL)
    missing = [part for part in config.parts if part not in params]
    if missing:
        raise ValueError(
            f"{folder} holds no {missing[0]}; convert denoiser and estimator to one folder."
        )
    return folder, config, params


def check_tile(tile: int, overlap: int) -> None:
    """Raise ValueError unless tiles are of a size that networks take and longer than overlaps."""
    if tile <= overlap or tile % SIZE_MULTIPLE or overlap < 0:
        raise ValueError(
            f"tile is {tile}, but must be a multiple of {SIZE_MULTIPLE} above the overlap, "
            f"{overlap}"
        )


def check_seed(seed: object) -> None:
    """Raise ValueError unless noise can be drawn from a seed, the same each time."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed!r}, but must be a whole number in 0..2^64 - 1")


def name_model(folder: Path) -> str:
    """Name a model folder by what is in it: the SHA-256 of its sums."""
    return file_sha256(folder / CHECKSUMS)


def with_precision(config: ModelConfig, precision: str | None, mesh: Mesh) -> ModelConfig:
    """Change the type of the networks' arithmetic; raise ValueError for an unknown one."""
    if precision is None:
        return config
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        precision = "float32" if on_cpu else "bfloat16"
    return dataclasses.replace(config, dtype=precision)


def to_signed(image: Shaped[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Turn uint8, uint16 or floats in 0..1 to floats in -1..1."""
    half = np.iinfo(image.dtype).max / 2 if np.issubdtype(image.dtype, np.integer) else 0.5
    return image.astype(np.float32) / np.float32(half) - 1


def from_signed(image: Float[np.ndarray, "*shape"], dtype: Any) -> Shaped[np.ndarray, "*shape"]:
    """Clip and round a signed image to uint8 or uint16, or turn it to floats in 0..1."""
    most = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    return _rounded((np.clip(image, -1, 1) + 1) * np.float32(most / 2), dtype)


def _rounded(values: np.ndarray, dtype: Any) -> np.ndarray:
    return (np.round(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


def to_bytes(image: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round a signed, clipped image to 8 bits."""
    return from_signed(image, np.uint8)


def with_alpha(
    result: UInt8[np.ndarray, "H W 3"], pixels: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "H W c"]:
    """Add the transparency of what a result was made of, enlarged as `alpha_rows` does."""
    if pixels.shape[-1] == 3:
        return result
    alpha = alpha_rows(pixels[..., 3], result.shape[:2])(0, len(result))
    return np.dstack([result, _rounded(alpha, np.uint8)])


def _as_pixels(image: Any) -> Shaped[np.ndarray, "h w c"]:
    if isinstance(image, str | Path | bytes):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_pixels(image)
    if isinstance(image, jax.Array):
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"the image is a {type(image).__name__}, but must be a NumPy array, a PIL image, or a "
            "photo's path or bytes."
        )
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or 0 in image.shape:
        raise ValueError(
            f"the image is {image.dtype} {list(image.shape)}, but must be [h, w], [h, w, 3] or "
            "[h, w, 4]."
        )
    if np.issubdtype(image.dtype, np.floating):
        if not ((image >= 0) & (image <= 1)).all():  # neither is NaN
            raise ValueError("the image has values out of 0..1, the range of floats.")
        return image.astype(np.float32)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"the image is {image.dtype}, but must be uint8, uint16, or floats in 0..1."
        )
    return image
