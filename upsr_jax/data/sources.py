"""Where images come from: folders of photographs, packed records, tfds, or pairs of folders."""

import bisect
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from upsr_jax.data import records
from upsr_jax.files.find import READ_SUFFIXES, find_images
from upsr_jax.files.names import without_suffixes
from upsr_jax.files.photos import count_pixels, read_rgb

Photo = UInt8[np.ndarray, "_ _ 3"]  # of any size
TFDS = "tfds:"
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # of JPEG and PNG, by how they begin
# How names end in DIV2K and Flickr2K (x4, x4m), RealSR (_HR, _LR4), DRealSR (_x4, _x1) and in the
# sets of SelfExSR (_SRF_4_HR, _SRF_4_LR)
PAIR_END = re.compile(r"(_SRF_\d|[_.-]?x\d[a-z]?\d?|[_.-]?(HR|GT|LR|LQ)\d?)+", re.IGNORECASE)


class Source(NamedTuple):
    """Images by number, below `size`: what to call one, and how to read it.

    `read` returns a Photo or a Pair. It raises OSError where that can't be read, and ValueError
    where it can't be decoded (as an ImageError) or is unfit. `check`, where images are files of
    their own, raises so too, mostly without decoding.
    """

    size: int
    name: Callable[[int], str]
    read: Callable[[int], Any]
    check: Callable[[int], None] | None = None


class PairFiles(NamedTuple):
    """The files of a ground truth and of its low-resolution image."""

    hr: str
    lr: str


class Pair(NamedTuple):
    """A ground truth and its low-resolution image, RGB, 8 bits."""

    hr: UInt8[np.ndarray, "4*h 4*w 3"]
    lr: UInt8[np.ndarray, "h w 3"]


def open_source(name: str) -> Source:
    """Open the photographs that an entry of config.data.folders names.

    A folder of image files; one of records, as its manifest.json says; or "tfds:DATASET/SPLIT",
    with the name of a prepared dataset (in TFDS_DATA_DIR) or the folder of its version.
    """
    if name.startswith(TFDS):
        return open_tfds(name)
    if records.is_records(name):
        return open_records(name)
    files = list_images(name)
    read, check = (partial(_read_listed, function, files) for function in (read_rgb, check_image))
    return Source(len(files), files.__getitem__, read, check)


def open_records(folder: str) -> Source:
    """Open a folder of records; raises ValueError as `records.open_shards` does."""
    data, shards = records.open_shards(folder)
    paths = [os.path.join(folder, shard) for shard in shards]
    name = partial(_name_record, paths, list(itertools.accumulate(shards.values())))
    return Source(len(data), name, partial(_read_record, data.__getitem__, name))


def open_tfds(name: str) -> Source:
    """Open "tfds:DATASET/SPLIT", prepared as ArrayRecord; TensorFlow isn't needed.

    Raises ImportError without tensorflow-datasets, ValueError where it has no such images.
    """
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"'{name}' needs a package: pip install 'tensorflow-datasets>=4.9.8,<5'."
        ) from error
    dataset, _, split = name.removeprefix(TFDS).rpartition("/")
    try:
        find = tfds.builder_from_directory if os.path.isdir(dataset) else tfds.builder
        builder = find(dataset)
        decoders = {"image": tfds.decode.SkipDecoding()}
        data = builder.as_data_source(split=split, decoders=decoders)
        data.dataset_info.features["image"]
    except (AssertionError, KeyError, NotImplementedError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"'{name}' can't be opened ({reason}). Prepare a dataset of images once with `tfds "
            "build --file_format=array_record`; set TFDS_DATA_DIR to where it lies, or name its "
            f"folder: {TFDS}/data/imagenet2012/5.1.0/train."
        ) from error

    name_fn = partial("{}[{}]".format, name)
    return Source(len(data), name_fn, partial(_read_record, partial(_tfds_image, data), name_fn))


def open_pairs(hr_folder: str, lr_folder: str) -> Source:
    """Open two folders of images, matched as `list_pairs` does."""
    pairs = list_pairs(hr_folder, lr_folder)
    name = partial(_name_pair, pairs)
    read, check = (partial(_read_listed, function, pairs) for function in (read_pair, check_files))
    return Source(len(pairs), name, read, check)


def concatenate(sources: Sequence[Source]) -> Source:
    """Number the images of all sources through."""
    ends = list(itertools.accumulate(source.size for source in sources))
    names = [source.name for source in sources]
    readers = [source.read for source in sources]
    return Source(ends[-1], partial(_call_part, names, ends), partial(_call_part, readers, ends))


# What the fields of sources call: of the module and not inside functions, so that it can be pickled
# for worker processes.


def _read_listed(read_fn: Callable[[Any], Any], files: Sequence[Any], index: int) -> Any:
    return read_fn(files[index])


def _name_pair(pairs: Sequence[PairFiles], index: int) -> str:
    return pairs[index].hr


def _name_record(paths: Sequence[str], ends: Sequence[int], index: int) -> str:
    shard, place = _locate(ends, index)
    return f"{paths[shard]}[{place}]"


def _tfds_image(data: Any, index: int) -> bytes:
    return data[index]["image"]


def _read_record(fetch: Callable[[int], bytes], name_fn: Callable[[int], str], index: int) -> Photo:
    try:
        record = fetch(index)
    except RuntimeError as error:
        raise OSError(f"'{name_fn(index)}' can't be read: {error}") from error
    return read_rgb(record, name_fn(index))


def _call_part(functions: Sequence[Callable[[int], Any]], ends: Sequence[int], index: int) -> Any:
    part, place = _locate(ends, index)
    return functions[part](place)


def _locate(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Find the part, of those that end at `ends`, where a number lies, and its place in there."""
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


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
    """Match the images of two folders, or of one, by their paths inside, and sort them by these.

    Names are the same, suffix aside, or end as data sets have it, all of a kind alike: `0801` and
    `0801x4`, `a_HR` and `a_LR4`. Raises ValueError where an image has no partner.
    """
    hr, lr = by_stem(hr_folder), by_stem(lr_folder)
    pairs = _match(hr, lr, "", "")
    if not pairs:
        ends = itertools.product(_common_ends(hr), _common_ends(lr))
        pairs = next(filter(None, itertools.starmap(partial(_match, hr, lr), ends)), None)
    if pairs:
        return pairs
    unmatched = sorted(hr.keys() ^ lr.keys())
    raise ValueError(
        f"'{hr_folder}' ({len(hr)} images) and '{lr_folder}' ({len(lr)}) must hold the same "
        "names, suffix aside, or names that end as NAME_HR and NAME_LR4, NAME and NAMEx4; only one "
        f"of them has {_enumerate(unmatched)}."
    )


def _match(
    hr: Mapping[str, str], lr: Mapping[str, str], hr_end: str, lr_end: str
) -> list[PairFiles] | None:
    """Pair images by what is before the ends of their names; None if that leaves any without."""
    ours, theirs = (
        {stem.removesuffix(end): file for stem, file in images.items() if stem.endswith(end)}
        for images, end in ((hr, hr_end), (lr, lr_end))
    )
    names = sorted(ours.keys() & theirs.keys())
    pairs = [PairFiles(ours[name], theirs[name]) for name in names if ours[name] != theirs[name]]
    # Each folder is used up, or if both are one, that is by both together.
    is_whole = set(itertools.chain(*pairs)) == {*hr.values(), *lr.values()}
    return pairs if is_whole else None


def _common_ends(stems: Iterable[str]) -> list[str]:
    """List what PAIR_END finds at the ends of at least half of the stems, after ""."""
    stems = list(stems)
    count = Counter(
        stem[start:]
        for stem in stems
        for start in range(max(1, len(stem) - 16), len(stem))
        if PAIR_END.fullmatch(stem, start)
    )
    return ["", *sorted(end for end, found in count.items() if 2 * found >= len(stems))]


def by_stem(folder: str) -> dict[str, str]:
    """List the images of a folder by their paths inside, sorted.

    Without their suffixes, but where only these tell two apart. Raises FileNotFoundError where
    there is none, ValueError where two share a name all the same.
    """
    images: dict[str, str] = {}
    files = list_images(folder)
    names = without_suffixes([Path(file).relative_to(folder) for file in files])
    for file, name in zip(files, map(Path.as_posix, names), strict=True):
        if name in images:
            raise ValueError(f"'{images[name]}' and '{file}' share a name: rename one of them.")
        images[name] = file
    return dict(sorted(images.items()))


def read_pair(files: PairFiles) -> Pair:
    """Read a ground truth and its low-resolution image.

    Raises ImageError as `read_rgb` does, ValueError as `fit_pair`.
    """
    return fit_pair(files, read_rgb(files.hr), read_rgb(files.lr))


def fit_pair(files: PairFiles, hr: Photo, lr: Photo) -> Pair:
    """Cut up to 3 pixels off the right and the bottom of a ground truth that has more than 4:1.

    So its low-resolution image was made, if its sides are no multiples of 4. Raises ValueError
    for any other sizes.
    """
    height, width = (4 * side for side in lr.shape[:2])
    if not (0 <= hr.shape[0] - height < 4 and 0 <= hr.shape[1] - width < 4):
        raise ValueError(
            f"'{files.hr}' has {hr.shape[1]}x{hr.shape[0]} pixels, but 4 times "
            f"'{files.lr}' ({lr.shape[1]}x{lr.shape[0]}) would be {width}x{height}, and at most 3 "
            "pixels more a side are cut off."
        )
    return Pair(hr[:height, :width], lr)


def check_image(file: str) -> None:
    """Look at the header and the end of an image file, and decode it if the end is missing.

    Raises ImageError as `read_rgb` does.
    """
    count_pixels(file)
    with open(file, "rb") as stream:
        start = stream.read(2)
        stream.seek(max(os.path.getsize(file) - 64, 0))
        if ENDS.get(start, b"") not in stream.read():
            read_rgb(file)


def check_files(files: PairFiles) -> None:
    """Check both images of a pair as `check_image` does."""
    check_image(files.hr)
    check_image(files.lr)


class Reading(NamedTuple):
    """What came of reading an image: its number, the image, and why others were passed over."""

    number: int
    item: Any
    rejected: list[str]


def read_or_next(source: Source, max_bad_fraction: float, index: int) -> Reading:
    """Read an image, or the next one that can be read and is fit.

    Raises ValueError where more images in a row are bad than `max_bad_fraction` of all.
    """
    rejected = []
    while True:
        try:
            return Reading(index, source.read(index), rejected)
        except (OSError, ValueError) as error:
            rejected.append(str(error))
            check_bad(rejected, source.size, max_bad_fraction)
        index = (index + 1) % source.size


def check_bad(reasons: Collection[str], size: int, max_bad_fraction: float) -> None:
    """Raise ValueError, with the reasons, if too many of `size` images are bad."""
    if len(reasons) > min(max_bad_fraction * size, size - 1):
        raise ValueError(
            f"{len(reasons)} of {size} images are bad, more than max_bad_fraction = "
            f"{max_bad_fraction} allows: {_enumerate(list(reasons))} Put whole images in their "
            "place, as a run's images must keep their number, or set config.data.max_bad_fraction "
            "higher; then give the same command again."
        )


def _enumerate(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
