"""Photographs of a kind, for tests of training and evaluation."""

from pathlib import Path

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


def read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def write_photos(folder: Path, count: int) -> Path:
    """Write photographs of 80 x 100 pixels and return their folder."""
    folder.mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), draw_photo(i, 80, 100)[..., ::-1])
    return folder
