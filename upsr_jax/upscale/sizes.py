"""What a result is to be, and resizing of pictures that come in bands from the top down."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from upsr_jax.files.write_photo import FORMATS
from upsr_jax.upscale.tiles import SCALE

MAX_SCALE = 16  # two runs of the model
MAX_BETWEEN = 2**28  # pixels between these two, which are held in memory
SUPPORT = {Image.Resampling.LANCZOS: 3, Image.Resampling.BICUBIC: 2}  # pixels to either side


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a result is to be, beside what the model makes of the photo.

    With no size given, it has four times the photo's sides. `scale` is in 1..16. Of `width` and
    `height` in pixels the other follows, if one is given. `max_side` makes a result smaller whose
    longer side would have more pixels. `format` is "auto", as the photo, or one of
    `write_photo.FORMATS`, `quality` 1 to 100 for those that lose some. All metadata can be
    stripped, or the location alone. Raises ValueError for what can't be.
    """

    scale: float | int | None = None
    width: int | None = None
    height: int | None = None
    max_side: int | None = None
    format: str = "auto"
    quality: int | None = None
    strip_metadata: bool = False
    strip_location: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and not 1 <= self.scale <= MAX_SCALE:
            raise ValueError(f"scale is {self.scale:g}, but must lie in 1..{MAX_SCALE}")
        for name in ("width", "height", "max_side"):
            pixels = getattr(self, name)
            if pixels is not None and pixels < 1:
                raise ValueError(f"{name} is {pixels}, but must be at least 1 pixel")
        if self.scale is not None and (self.width or self.height):
            raise ValueError("give either a scale or a width and height, not both")
        if self.format not in ("auto", *FORMATS):
            raise ValueError(f"no format {self.format!r}: choose auto, {', '.join(FORMATS)}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}, but must lie in 1..100")

    def changes(self) -> dict[str, Any]:
        """Give what is not as by default and is not seen from a result's format."""
        default = Wanted()
        found = {key: value for key, value in vars(self).items() if value != getattr(default, key)}
        return {key: value for key, value in found.items() if key != "format"}


def result_size(height: int, width: int, wanted: Wanted) -> tuple[int, int]:
    """Tell height and width of the result of a photo.

    Raises ValueError above 16 times a side, and above 4 times for a photo too large for that.
    """
    if wanted.width or wanted.height:
        ratio = wanted.width / width if wanted.width else (wanted.height or 1) / height
        tall, wide = wanted.height or ratio * height, wanted.width or ratio * width
    else:
        ratio = wanted.scale or SCALE
        tall, wide = ratio * height, ratio * width
    longest = max(tall, wide)
    if wanted.max_side and longest > wanted.max_side:
        tall, wide = (side * wanted.max_side / longest for side in (tall, wide))
    tall, wide = max(1, round(tall)), max(1, round(wide))
    if tall > MAX_SCALE * height or wide > MAX_SCALE * width:
        raise ValueError(
            f"a photo of {width}x{height} can't become {wide}x{tall}: a side may grow "
            f"{MAX_SCALE} times, to {MAX_SCALE * width}x{MAX_SCALE * height}"
        )
    if runs_twice((height, width), (tall, wide)) and height * width * SCALE**2 > MAX_BETWEEN:
        raise ValueError(
            f"a photo of {width}x{height} can't become {wide}x{tall}: above {SCALE} times a side "
            f"it must have at most {MAX_BETWEEN // SCALE**2:,} pixels"
        )
    return tall, wide


def runs_twice(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Tell whether the model has to run on its own result to make a photo as large as `new`."""
    return new[0] > SCALE * old[0] or new[1] > SCALE * old[1]


def resize_rows(
    rows: Float32[np.ndarray, "n w c"],
    start: int,
    height: int,
    new: tuple[int, int],
    top: int,
    bottom: int,
    resample: Image.Resampling,
) -> Float32[np.ndarray, "rows W c"]:
    """Compute rows `top` to `bottom` of a picture resized to `new` height and width.

    `rows` are those of the picture, `height` rows in all, from `start` on, at least as many as
    `rows_needed` says. What comes out does not depend on how a picture is cut into rows.
    """
    ratio = height / new[0]
    box = (0, max(top * ratio - start, 0), rows.shape[1], min(bottom * ratio - start, len(rows)))
    channels = [
        np.asarray(Image.fromarray(channel).resize((new[1], bottom - top), resample, box))
        for channel in np.ascontiguousarray(np.moveaxis(rows, -1, 0))
    ]
    return np.stack(channels, axis=-1)


def rows_needed(
    height: int, new_height: int, top: int, bottom: int, resample: Image.Resampling
) -> tuple[int, int]:
    """Tell the first row and the end of those that rows `top` to `bottom` are computed from."""
    ratio = height / new_height
    reach = SUPPORT[resample] * max(ratio, 1) + 1
    return max(0, math.floor(top * ratio - reach)), min(height, math.ceil(bottom * ratio + reach))


def resize_bands(
    bands: Iterable[Float32[np.ndarray, "rows w c"]], old: tuple[int, int], new: tuple[int, int]
) -> Iterator[Float32[np.ndarray, "rows W c"]]:
    """Resize a picture from `old` to `new` height and width by Lanczos's windowed sinc.

    Only the bands that the next rows are computed from are held.
    """
    if old == new:
        yield from bands
        return
    resample = Image.Resampling.LANCZOS
    height, held, start, top = old[0], None, 0, 0
    for band in bands:
        held = band if held is None else np.concatenate([held, band])
        end = start + len(held)
        bottom = top
        if end == height:
            bottom = new[0]
        else:
            reach = SUPPORT[resample] * max(height / new[0], 1) + 2
            bottom = max(top, math.floor((end - reach) * new[0] / height))
        if bottom > top:
            yield resize_rows(held, start, height, new, top, bottom, resample)
            top = bottom
            first, _ = rows_needed(height, new[0], top, top + 1, resample)
            held, start = held[first - start :], first


def alpha_rows(
    alpha: np.ndarray, new: tuple[int, int]
) -> Callable[[int, int], Float32[np.ndarray, "rows W 1"]]:
    """Build the function that computes rows of a photo's enlarged transparency.

    It takes the first row and the end, and gives values in the range of `alpha`, [h, w].
    """
    height = len(alpha)
    most = np.iinfo(alpha.dtype).max if np.issubdtype(alpha.dtype, np.integer) else 1

    def compute(top: int, bottom: int) -> np.ndarray:
        resample = Image.Resampling.BICUBIC
        first, end = rows_needed(height, new[0], top, bottom, resample)
        rows = alpha[first:end, :, None].astype(np.float32)
        return np.clip(resize_rows(rows, first, height, new, top, bottom, resample), 0, most)

    return compute
