"""Upscale a photo of any size behind one call: weights, tiles and sampling.

All tiles of a picture have one shape, smaller than the chosen tile only where the picture is, and
then a multiple of 64. So few shapes are ever compiled, with tiles of 256 at most 16. Memory on the
device depends on the tile and the batch, not on the picture.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from tqdm import tqdm

from upsr_jax.cluster.devices import fitting, local_mesh, put_whole, split_rows
from upsr_jax.cluster.environment import program
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
from upsr_jax.upscale.tiles import SCALE, blend_bands, noise_window, pad_reflect, tile_grid
from upsr_jax.weights.model_folder import CHECKSUMS, load_model
from upsr_jax.weights.models import BUILT_IN_MODEL, find_model

LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # BT.601
TILE, OVERLAP = 256, 32  # low-resolution pixels


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
    parts: Sequence[str] = ("image",)
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
        cls, folder: str | Path | None = None, tile: int = TILE, **sampling: Any
    ) -> "Upscaler":
        """Load a model, by default the built-in one, to run on all local devices.

        `folder` is a model folder, or the name of a model as `weights.models.find_model` takes it.
        The other options are those of `restore.Sampling`. Raises FileNotFoundError or ValueError if
        it is no whole model folder or can't sample so.
        """
        folder = find_model(folder)
        config, params = load_model(folder, check_weights=folder != BUILT_IN_MODEL)
        if "estimator" not in params or config.network not in params:
            missing = "denoiser" if "estimator" in params else "estimator"
            raise ValueError(
                f"{folder} holds no {missing}; convert denoiser and estimator to one folder."
            )
        options = Sampling(**sampling)
        return cls.from_params(
            with_sampling(config, options), params, name_model(folder), options.fidelity, tile=tile
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
        **settings: Any,
    ) -> "Upscaler":
        """Run a model of NumPy arrays on all local devices.

        `model` names it in the recipe; `make_program` compiles as `devices.split_rows` does;
        `settings` are the other fields.
        """
        check_not_forked()
        mesh = local_mesh()
        super_resolve = make_super_resolve(config, fidelity)
        program = make_program(lambda params, tiles: super_resolve(params, *tiles), mesh)
        recipe = {
            "model": model,
            "sampler": config.sampler,
            "prior": config.prior,
            "fidelity": fidelity,
        }
        return cls(
            lambda params, *tiles: program(params, tiles),
            put_whole(params, mesh),
            batch=mesh.size * (tiles_per_device or cls.tiles_per_device()),
            recipe=recipe,
            made_of=(config, model, fidelity, tiles_per_device, make_program),
            **settings,
        )

    @staticmethod
    def tiles_per_device() -> int:
        """Choose a batch: one tile keeps a CPU busy, and an accelerator gains from several."""
        return 1 if jax.default_backend() == "cpu" else 4

    def __call__(
        self,
        image: np.ndarray | Image.Image | str | Path | bytes,
        seed: int = 0,
        progress: bool = False,
    ) -> UInt8[np.ndarray, "H W c"]:
        """Upscale to RGB, or RGBA if the image has transparency; same seed, same bytes.

        Of a grey image the result is grey, too: R = G = B in, R = G = B out.
        An array is uint8 [h, w], [h, w, 3] or [h, w, 4]; a path or bytes are those of a photo, read
        as `photos.read_image` does. `progress` shows a bar of tiles on stderr, if that is a
        terminal. Raises ValueError for any other image, FloatingPointError if the model gives NaN,
        MemoryError if a batch of tiles does not fit into the device's memory, and RuntimeError in a
        process that was forked.
        """
        pixels = _as_pixels(image)
        height, width = pixels.shape[:2]
        result = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
        row = 0
        for band in self.restore_bands(visible_colours(pixels), seed, progress):
            result[row : row + len(band)] = to_bytes(band[..., :3])
            row += len(band)
        return with_alpha(result, pixels)

    def restore(
        self, rgb: UInt8[np.ndarray, "h w 3"], seed: int
    ) -> list[Float32[np.ndarray, "4*h 4*w 3"]]:
        """Restore an image to its `parts`, in memory as a whole; raises as a call does."""
        whole = np.concatenate(list(self.restore_bands(rgb, seed)))
        return np.split(whole, len(self.parts), axis=-1)

    def restore_bands(
        self, rgb: UInt8[np.ndarray, "h w 3"], seed: int, progress: bool = False
    ) -> Iterator[Float32[np.ndarray, "rows W c"]]:
        """Yield `parts` of the Restoration, joined along the channels, in bands from the top down.

        The image of a grey one is the luma of what the model gives, which has a tint.
        Raises FloatingPointError if the model gives NaN, MemoryError as a call does.
        """
        check_not_forked()
        check_seed(seed)
        height, width = rgb.shape[:2]
        shape = min(padded_side(height), self.tile), min(padded_side(width), self.tile)
        padded = pad_reflect(rgb, max(height, shape[0]), max(width, shape[1]))
        tops, lefts = (
            tile_grid(length, tile, self.overlap if length > tile else 0)
            for length, tile in zip(padded.shape, shape, strict=False)
        )
        corners = list(itertools.product(tops, lefts))
        tiles = tqdm(
            self._restore_tiles(padded, corners, shape, seed),
            total=len(corners),
            unit="tile",
            leave=False,
            disable=None if progress else True,
        )
        rows, is_grey = SCALE * height, (rgb == rgb[..., :1]).all()
        for band in blend_bands(
            iter(tiles),
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

    def describe(self, source_sha256: str, seed: int) -> str:
        """Name all that decides a result: program, options, and the photo by its SHA-256."""
        options = {**self.recipe, "tile": self.tile, "seed": int(seed), "source": source_sha256}
        if (self.overlap, self.blend) != (OVERLAP, "feather"):
            options |= {"overlap": self.overlap, "blend": self.blend}
        return f"{program()} {json.dumps(options)}"

    def stop(self) -> None:
        """End the calls of other threads with CancelledError; this upscaler is of no more use."""
        self._batcher.stop()

    def _restore_tiles(
        self, image: np.ndarray, corners: list[tuple[int, int]], shape: tuple[int, int], seed: int
    ) -> Iterator[Float[np.ndarray, "H W 3"]]:
        """Yield the signed result of the tile at each corner, in order."""
        height, width = shape

        def submit(top: int, left: int) -> Future:
            noise = noise_window(seed, *(SCALE * n for n in (top, left, height, width)))
            return self._batcher.submit(image[top : top + height, left : left + width], noise)

        waiting = deque(itertools.starmap(submit, corners[: self.batch]))
        others = itertools.starmap(submit, corners[self.batch :])
        for top, left in corners:
            result = self._batcher.wait(waiting.popleft())
            waiting.extend(itertools.islice(others, 1))
            if not np.isfinite(result).all():
                raise FloatingPointError(
                    f"the model gave NaN or infinity in the tile at row {top}, column {left}; "
                    "its weights may be damaged."
                )
            yield result

    def _run(self, lr: np.ndarray, noise: np.ndarray) -> np.ndarray:
        batch, height, width, _ = lr.shape
        with fitting(f"{batch} tiles of {width}x{height}", "use smaller tiles"):
            restored = self.super_resolve(self.params, lr.astype(np.float32) / 127.5 - 1, noise)
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


def to_bytes(image: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round a signed, clipped image to 8 bits."""
    return np.round((image + 1) * 127.5).astype(np.uint8)


def with_alpha(
    result: UInt8[np.ndarray, "H W 3"], pixels: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "H W c"]:
    """Add the transparency of what a result was made of, enlarged by cubic convolution."""
    if pixels.shape[-1] == 3:
        return result
    alpha = cv2.resize(pixels[..., 3], None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    return np.dstack([result, alpha])


def _as_pixels(image: Any) -> UInt8[np.ndarray, "h w c"]:
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
    if (
        image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[-1] not in (3, 4)
        or 0 in image.shape
    ):
        raise ValueError(
            f"the image is {image.dtype} {list(image.shape)}, "
            "but must be uint8 [h, w], [h, w, 3] or [h, w, 4]."
        )
    return image
