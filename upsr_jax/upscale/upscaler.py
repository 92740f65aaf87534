"""Upscale a photo of any size behind one call: weights, tiles and sampling.

All tiles of a picture have one shape, smaller than the chosen tile only where the picture is, and
then a multiple of 64. So few shapes are ever compiled, with tiles of 256 at most 16. Memory on the
device depends on the tile and the batch, not on the picture.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from tqdm import tqdm

from upsr_jax.cluster.devices import fitting, local_mesh, put_whole, split_rows
from upsr_jax.files.photos import spread_colours, to_pixels
from upsr_jax.files.whole import file_sha256
from upsr_jax.upscale.batcher import TileBatcher
from upsr_jax.upscale.restore import (
    SIZE_MULTIPLE,
    Restoration,
    make_super_resolve,
    padded_side,
    with_options,
)
from upsr_jax.upscale.tiles import blend_bands, noise_window, pad_reflect, tile_grid
from upsr_jax.weights.model_folder import CHECKSUMS, load_model

BUILT_IN_MODEL = Path(__file__).parents[1] / "assets" / "lite_x4"
SCALE = 4
OVERLAP = 32  # low-resolution pixels


@dataclasses.dataclass(frozen=True)
class Upscaler:
    """Upscale images x4 with one model; threads that call it share its batches of tiles.

    `super_resolve(params, lr, noise)` is what `restore.make_super_resolve` makes, jitted. Images
    up to `tile` pixels a side (a multiple of 64) run whole, larger ones in tiles. It always takes
    `batch` tiles of one shape, from several images or repeated where there are fewer. `recipe`
    names what, beside image, seed and tile, decides the result.
    """

    super_resolve: Callable[..., Restoration]
    params: Any
    tile: int = 256
    batch: int = 1
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _batcher: TileBatcher = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tile <= 0 or self.tile % SIZE_MULTIPLE:
            raise ValueError(f"tile is {self.tile}, but must be a multiple of {SIZE_MULTIPLE}.")
        object.__setattr__(self, "_batcher", TileBatcher(self._restore, self.batch))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        tile: int = 256,
        *,
        steps: int | None = None,
        method: str | None = None,
        min_noise: float | None = None,
        fidelity: float = 0.0,
    ) -> "Upscaler":
        """Load a model folder, by default the built-in model, to run on all local devices.

        The other options are those of `restore.with_options` and `make_super_resolve`. Raises
        FileNotFoundError or ValueError if it is no whole model folder or can't sample so.
        """
        folder = Path(folder or BUILT_IN_MODEL)
        config, params = load_model(folder)
        if "estimator" not in params or config.network not in params:
            missing = "denoiser" if "estimator" in params else "estimator"
            raise ValueError(
                f"{folder} holds no {missing}; convert denoiser and estimator to one folder."
            )
        config = with_options(config, steps, method, min_noise)
        mesh = local_mesh()
        # One tile keeps a CPU busy; an accelerator gains from several.
        tiles_per_device = 1 if jax.default_backend() == "cpu" else 4
        recipe = {
            "model": file_sha256(folder / CHECKSUMS),
            "sampler": config.sampler.to_dict(),
            "prior": config.prior.to_dict(),
            "fidelity": fidelity,
        }
        super_resolve = make_super_resolve(config, fidelity)
        jitted = split_rows(lambda params, tiles: super_resolve(params, *tiles), mesh)
        return cls(
            lambda params, *tiles: jitted(params, tiles),
            put_whole(params, mesh),
            tile,
            mesh.size * tiles_per_device,
            recipe,
        )

    def __call__(
        self, image: np.ndarray | Image.Image, seed: int = 0, progress: bool = False
    ) -> UInt8[np.ndarray, "H W c"]:
        """Upscale to RGB, or RGBA if the image has transparency; same seed, same bytes.

        An array is uint8 [h, w], [h, w, 3] or [h, w, 4]. `progress` shows a bar of tiles on stderr
        if that is a terminal. Raises ValueError for any other image, FloatingPointError if the
        model gives NaN, MemoryError if a batch of tiles does not fit into the device's memory.
        """
        pixels = _as_pixels(image)
        if pixels.shape[-1] == 3:
            return self._upscale_rgb(pixels, seed, progress)
        rgb = self._upscale_rgb(spread_colours(pixels), seed, progress)
        alpha = cv2.resize(pixels[..., 3], None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        return np.dstack([rgb, alpha])

    def stop(self) -> None:
        """End the calls of other threads with CancelledError; this upscaler is of no more use."""
        self._batcher.stop()

    def _upscale_rgb(self, rgb: np.ndarray, seed: int, progress: bool) -> np.ndarray:
        height, width = rgb.shape[:2]
        shape = min(padded_side(height), self.tile), min(padded_side(width), self.tile)
        padded = pad_reflect(rgb, max(height, shape[0]), max(width, shape[1]))
        tops = tile_grid(padded.shape[0], shape[0], OVERLAP)
        lefts = tile_grid(padded.shape[1], shape[1], OVERLAP)
        corners = list(itertools.product(tops, lefts))
        tiles = tqdm(
            self._restore_tiles(padded, corners, shape, seed),
            total=len(corners),
            unit="tile",
            leave=False,
            disable=None if progress else True,
        )
        bands = blend_bands(
            iter(tiles),
            [SCALE * top for top in tops],
            [SCALE * left for left in lefts],
            (SCALE * shape[0], SCALE * shape[1]),
            SCALE * OVERLAP,
        )
        result = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
        row = 0
        for band in bands:
            rest = result[row : row + len(band)]
            rest[:] = np.round((band[: len(rest), : SCALE * width] + 1) * 127.5)
            row += len(band)
        return result

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

    def _restore(self, lr: np.ndarray, noise: np.ndarray) -> np.ndarray:
        batch, height, width, _ = lr.shape
        with fitting(f"{batch} tiles of {width}x{height}", "use smaller tiles"):
            lr = lr.astype(np.float32) / 127.5 - 1
            return np.asarray(self.super_resolve(self.params, lr, noise).image)


def _as_pixels(image: np.ndarray | Image.Image) -> UInt8[np.ndarray, "h w c"]:
    if isinstance(image, Image.Image):
        return to_pixels(image)
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
