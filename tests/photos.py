"""Pictures for tests: drawn, written and read."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image


def draw_photo(seed: int, height: int, width: int) -> np.ndarray:
    """Draw smooth coloured shapes with some edges, uint8 [h, w, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for colour in generator.integers(0, 256, (5, 3)).tolist():
        centre = generator.integers(0, (width, height)).tolist()
        cv2.circle(image, centre, min(height, width) // 8, colour, -1)
    return image


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw every pixel on its own, uint8 [h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


SMALL = photo(8, 8)


def enlarge(image: Any) -> Any:
    """Repeat every pixel of an image, or of a batch of them, 4 x 4 times."""
    return image.repeat(4, axis=-3).repeat(4, axis=-2)


def save(path: Path, pixels: np.ndarray = SMALL, **options: Any) -> Path:
    """Write a picture, in a folder that need not be there yet, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def write_photos(folder: Path, count: int) -> Path:
    """Write photographs of 80 x 100 pixels and return their folder."""
    for i in range(count):
        save(folder / f"{i}.png", draw_photo(i, 80, 100))
    return folder
