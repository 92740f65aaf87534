"""STAND-IN of the seam, dropped at the merge."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from upsr_jax.files.photos import read_photo


@dataclasses.dataclass(frozen=True)
class Wanted:
    scale: float | None = None
    width: int | None = None
    height: int | None = None
    max_side: int | None = None
    format: str = "auto"
    quality: int | None = None
    strip_metadata: bool = False
    strip_location: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and not 1 <= self.scale <= 16:
            raise ValueError(f"scale is {self.scale:g}, but must lie in 1..16")
        if self.format not in ("auto", "png", "jpg", "webp", "tiff", "avif", "jxl"):
            raise ValueError(f"no format {self.format!r}: choose auto, png")


class Result(NamedTuple):
    data: bytes
    format: str
    width: int
    height: int
    note: str
    warnings: tuple[str, ...]
    uncertainty: bytes | None


def result_size(height: int, width: int, wanted: Wanted) -> tuple[int, int]:
    scale = wanted.scale or 4
    return round(scale * height), round(scale * width)


def upscale_photo(
    upscaler: Any,
    source: str | Path | bytes,
    wanted: Wanted = Wanted(),
    seed: int = 0,
    *,
    uncertainty: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    image, _ = read_photo(source)
    h, w = result_size(*image.shape[:2], wanted)
    if on_progress:
        on_progress(0, h * w)
    result = Image.fromarray(upscaler(image, seed)).resize((w, h))
    if on_progress:
        on_progress(h * w, h * w)
    file = io.BytesIO()
    format = "png" if wanted.format == "auto" else wanted.format
    result.convert("RGB").save(file, {"jpg": "jpeg"}.get(format, format))
    grey = io.BytesIO()
    Image.fromarray(np.full((h, w), 100, np.uint8)).save(grey, "png")
    return Result(
        file.getvalue(), format, w, h, "note", (), grey.getvalue() if uncertainty else None
    )
