"""Where images come from: folders of photographs, or pairs of folders.

A source is a sorted list of files and a function that reads one of them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from absl import logging
from jaxtyping import UInt8

from upsr_jax.image_io import READ_SUFFIXES, find_images

Photo = UInt8[np.ndarray, "_ _ 3"]  # of any size
HEADERS_CHECKED = 4096  # evenly spaced: with more, to open them all would take minutes


class PairFiles(NamedTuple):
    """The files of a ground truth and of its low-resolution image."""

    hr: str
    lr: str


class Pair(NamedTuple):
    """A ground truth and its low-resolution image, RGB, 8 bits."""

    hr: UInt8[np.ndarray, "4*h 4*w 3"]
    lr: UInt8[np.ndarray, "h w 3"]


def list_images(*folders: str) -> list[str]:
    """List the images in folders and their subfolders, sorted within each folder.

    Raises FileNotFoundError where a folder is missing or holds no image.
    """
    images = []
    for folder in folders:
        found = find_images(folder)
        if not found:
            state = "has no images" if os.path.isdir(folder) else "does not exist"
            raise FileNotFoundError(
                f"The image folder '{os.path.abspath(folder)}' {state}. Put photographs there "
                f"({', '.join(READ_SUFFIXES)}; subfolders are searched) or name another folder in "
                "the config. A few thousand sharp photographs train a model; the released one was "
                "trained on ImageNet (ILSVRC2012_img_train.tar, https://image-net.org/download)."
            )
        images += found
    return images


def list_pairs(hr_folder: str, lr_folder: str) -> list[PairFiles]:
    """Match the images of two folders by their paths inside, suffix aside, and sort them by it.

    Raises ValueError where an image has no partner or two of them.
    """
    hr, lr = _by_stem(hr_folder), _by_stem(lr_folder)
    unmatched = sorted(hr.keys() ^ lr.keys())
    if unmatched:
        raise ValueError(
            f"'{hr_folder}' ({len(hr)} images) and '{lr_folder}' ({len(lr)}) must hold the same "
            f"names, suffix aside; only one of them has {_enumerate(unmatched)}."
        )
    return [PairFiles(hr[stem], lr[stem]) for stem in sorted(hr)]


def _by_stem(folder: str) -> dict[str, str]:
    images: dict[str, str] = {}
    for image in list_images(folder):
        stem = Path(image).relative_to(folder).with_suffix("").as_posix()
        if stem in images:
            raise ValueError(f"'{images[stem]}' and '{image}' share a name: remove one of them.")
        images[stem] = image
    return images


def read_image(file: str) -> Photo:
    """Read an image upright (EXIF) as 8-bit RGB: grey is repeated, alpha dropped.

    Raises OSError where the file can't be read or decoded.
    """
    try:
        image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise OSError(f"'{file}' can't be decoded: {error}") from error
    if image is None:
        raise OSError(f"'{file}' can't be decoded: it is damaged or of an unknown kind.")
    return image


def read_pair(files: PairFiles) -> Pair:
    """Read a ground truth and its low-resolution image.

    Raises OSError as `read_image` does, ValueError unless the sides are 4:1.
    """
    pair = Pair(read_image(files.hr), read_image(files.lr))
    height, width = pair.lr.shape[:2]
    if pair.hr.shape[:2] != (4 * height, 4 * width):
        raise ValueError(
            f"'{files.hr}' has {pair.hr.shape[1]}x{pair.hr.shape[0]} pixels, but 4 times "
            f"'{files.lr}' ({width}x{height}) would be {4 * width}x{4 * height}."
        )
    return pair


def eval_pairs(hr_folder: str, lr_folder: str) -> Iterator[tuple[str, Photo, Photo]]:
    """Yield name, ground truth and low-resolution image of every pair, sorted by name."""
    for files in list_pairs(hr_folder, lr_folder):
        stem = Path(files.hr).relative_to(hr_folder).with_suffix("").as_posix()
        pair = read_pair(files)
        yield stem, pair.hr, pair.lr


def make_reader(
    files: Sequence[Any], read_fn: Callable[[Any], Any], max_bad_fraction: float
) -> Callable[[int], tuple[int, Any]]:
    """Return read(index) -> (index, item), where the next file stands in for one that is bad.

    A bad file is one that `read_fn` meets with an OSError, or whose header is none of an image.
    Each is logged once; ValueError lists them when they are more than `max_bad_fraction` of all.
    What read returns depends on the files alone, not on earlier calls; threads may share it.
    """
    reasons: dict[Any, str] = {}

    def reject(file: Any, reason: str) -> None:
        if reasons.setdefault(file, reason) is not reason:
            return  # another thread was first
        logging.warning("Skipping an image: %s", reason)
        if len(reasons) > min(max_bad_fraction * len(files), len(files) - 1):
            raise ValueError(
                f"{len(reasons)} of {len(files)} images are bad, more than max_bad_fraction = "
                f"{max_bad_fraction} allows: {_enumerate(list(reasons.values()))}"
            )

    def read(index: int) -> tuple[int, Any]:
        while True:
            file = files[index]
            if file not in reasons:
                try:
                    return index, read_fn(file)
                except OSError as error:
                    reject(file, str(error))
            index = (index + 1) % len(files)

    for file in files[:: -(-len(files) // HEADERS_CHECKED)]:
        for name in [file] if isinstance(file, str) else file:
            if not cv2.haveImageReader(name):
                reject(file, f"'{name}' does not begin like an image.")
    return read


def _enumerate(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
