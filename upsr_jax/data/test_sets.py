"""Images to evaluate on: pairs, low-resolution images alone, or ground truths degraded here."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from upsr_jax.data.degradation.host import degrade
from upsr_jax.data.sources import PairFiles, by_stem, fit_pair, list_pairs
from upsr_jax.files.find import find_images
from upsr_jax.files.metadata import Metadata
from upsr_jax.files.photos import read_photo, read_rgb, visible_colours
from upsr_jax.files.whole import file_sha256

MIN_SIDE = 16  # of a ground truth that is degraded: less may be scaled to nothing on the way
MAX_LR_PIXELS = 2**21  # each takes 17 kB of memory where LPIPS is measured


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Folders of ground truth and of low-resolution images; "" where there is none.

    `source` tells where to get them. Without `lr`, the centre squares of the ground truths, of at
    most `crop_size` pixels a side, are degraded by `degradation`, from `seed` and their names.
    """

    gt: str
    lr: str
    source: str = "give another folder"
    max_images: int = 10**9
    seed: int = 0
    crop_size: int = 256
    degradation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Entry(NamedTuple):
    """The files of one image: `lr` is None where it is made from `gt`, `gt` where there is none."""

    name: str  # the path inside its folder, suffix aside
    lr: str | None
    gt: str | None


class Example(NamedTuple):
    """A low-resolution image, RGB, 8 bits, and its ground truth, if there is one.

    `picture` is the low-resolution image as it was read, with its transparency if it has any, and
    `kept` what a result keeps beside the pixels.
    """

    name: str
    lr: UInt8[np.ndarray, "h w 3"]
    hr: UInt8[np.ndarray, "4*h 4*w 3"] | None
    sha256: str  # of the entry's files
    picture: UInt8[np.ndarray, "h w c"]
    kept: Metadata | None = None
    source_sha256: str = ""  # of the low-resolution image's file, or what it is made of


def find_entries(images: ImageSet) -> list[Entry]:
    """List all images, sorted by name, with absolute paths.

    Raises FileNotFoundError, with where to get them, if a folder is missing or has no image, and
    ValueError if an image of a pair is missing or a name is no text.
    """
    gt, lr = (folder and os.path.abspath(folder) for folder in (images.gt, images.lr))
    for folder in filter(None, (gt, lr)):
        if not (os.path.isdir(folder) and find_images(folder)):
            raise FileNotFoundError(
                f"The images to evaluate on are not in '{folder}': {images.source}."
            )
    if gt and lr:
        names = {file: name for name, file in by_stem(lr).items()}
        entries = [Entry(names[pair.lr], pair.lr, pair.hr) for pair in list_pairs(gt, lr)]
    elif lr:
        entries = [Entry(name, file, None) for name, file in by_stem(lr).items()]
    elif gt:
        entries = [Entry(name, None, file) for name, file in by_stem(gt).items()]
    else:
        raise ValueError(
            "config.eval.gt and config.eval.lr are both empty: name a folder of images"
        )
    for entry in entries:
        if entry.name.encode(errors="ignore").decode() != entry.name:  # reports couldn't show it
            raise ValueError(f"The name of image {entry.name!a} is not UTF-8: rename it.")
    return entries


def make_read_fn(images: ImageSet) -> Callable[[Entry], Example]:
    """Build the function that reads an entry; it raises OSError or ValueError for a broken image.

    A ground truth without a low-resolution image is degraded, the same each time.
    """

    def read(entry: Entry) -> Example:
        digests = hash_each(entry)  # before they are read, so that a later change is seen
        sha256 = join_hashes(digests)
        hr = kept = None
        if entry.lr is not None:
            source_sha256 = digests[0]
            picture, kept, _ = read_photo(entry.lr)
            lr = visible_colours(picture)
            if entry.gt is not None:
                hr = fit_pair(PairFiles(entry.gt, entry.lr), read_rgb(entry.gt), lr).hr
        else:
            assert entry.gt is not None
            source_sha256 = sha256
            hr = centre_crop(read_rgb(entry.gt), images.crop_size)
            if hr.shape[0] < MIN_SIDE:
                raise ValueError(
                    f"'{entry.gt}' has {hr.shape[0]} pixels a side after cropping, but {MIN_SIDE} "
                    "are the least that is degraded."
                )
            rng = np.random.default_rng(image_seed(images.seed, entry.name))
            lr = picture = degrade(rng, hr, **images.degradation)
        height, width = lr.shape[:2]
        if height * width > MAX_LR_PIXELS:
            raise ValueError(
                f"'{entry.lr or entry.gt}' makes {width}x{height} low-resolution pixels, more than "
                f"the {MAX_LR_PIXELS:,} that are measured at once: cut it into parts."
            )
        return Example(entry.name, lr, hr, sha256, picture, kept, source_sha256)

    return read


def hash_files(entry: Entry) -> str:
    """Hash the bytes of an entry's files; raises OSError if one can't be read."""
    return join_hashes(hash_each(entry))


def hash_each(entry: Entry) -> list[str]:
    """Hash the low-resolution file of an entry and its ground truth, those that it has."""
    return [file_sha256(Path(file)) for file in (entry.lr, entry.gt) if file]


def join_hashes(digests: Sequence[str]) -> str:
    """Make one hash of several."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def image_seed(seed: int, name: str) -> int:
    """Draw the 64-bit seed of an image from the seed of all and its name, whatever its place."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cut the centre square of at most `size` pixels, its side a multiple of 4."""
    side = min(size, *image.shape[:2]) // 4 * 4
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]
