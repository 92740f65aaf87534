"""Make ImageNet-Test: pairs of 256- and 64-pixel images from ImageNet's validation images.

python scripts/prepare_imagenet_test.py ILSVRC2012_img_val.tar --out data/imagenet_test

SOURCE is a folder or a tar. The ground truth is the centre square of an image, area-resized to 256
pixels; its low-resolution image is made by configs.degradations.imagenet_test. Which images are
taken, and how each is degraded, depends on the seed and their names alone. Stopped at any moment,
the same command goes on. OUT/gt and OUT/lq become config.eval.gt and config.eval.lr.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from tqdm import tqdm

from configs.degradations import imagenet_test
from upsr_jax.data.archives import Member, list_members, read_member
from upsr_jax.data.degradation.host import degrade
from upsr_jax.data.sources import Pair, Photo
from upsr_jax.files.find import check_local
from upsr_jax.files.names import show
from upsr_jax.files.photos import read_rgb
from upsr_jax.files.whole import (
    check_begun,
    file_sha256,
    locked,
    read_json,
    write_json,
    write_whole,
)

SIZE = 256  # pixels of the ground truth
AHEAD = 64  # pairs made at a time


def main(
    source: Annotated[str, typer.Argument(help="A folder of images, or a tar of them.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="Pairs to make.")] = 3000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make pairs of images of SOURCE in OUT/gt and OUT/lq, and print what came of it."""
    try:
        manifest = make_pairs(os.path.abspath(source), out, count, seed)
    except (OSError, ValueError) as error:
        sys.exit(show(f"prepare_imagenet_test: {error}"))
    skipped = len(manifest["skipped"])
    print(f"{out}: {count} pairs; {skipped} images were unfit. {out / 'manifest.json'} has more.")


def make_pairs(source: str, out: Path, count: int, seed: int) -> dict[str, Any]:
    """Make the pairs that `out` doesn't hold yet; return the manifest.

    Raises ValueError where `out` was begun otherwise or is in use, where two images share a name,
    or where fewer are fit than `count`.
    """
    check_local(out)
    members, _ = list_members([source])
    names = Counter(map(stem, members))
    if double := [name for name, times in names.items() if times > 1]:
        raise ValueError(
            f"'{source}' has several images named {', '.join(double[:20])}, suffix aside, which "
            "would become one pair: rename all but one."
        )
    settings = {
        "format": "upsr_jax image pairs",
        "source": source,
        "num_files": len(members),
        "count": count,
        "seed": seed,
        "size": SIZE,
        "degradation": imagenet_test().to_dict(),
    }
    with locked(out):
        known = begin(out / "manifest.json", settings)
        manifest = {**settings, **write_pairs(source, out, count, seed, members, known)}
        write_json(out / "manifest.json", manifest)
    return manifest


def begin(manifest: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Write the settings, or return the SHA-256 of the files that are there, if all were written.

    Raises ValueError if they were begun with other settings.
    """
    if not manifest.is_file():
        write_json(manifest, settings)
        return {}
    begun = read_json(manifest)
    check_begun(manifest.parent, begun, settings)
    return begun.get("files", {})


def write_pairs(
    source: str,
    out: Path,
    count: int,
    seed: int,
    members: Sequence[Member],
    known: Mapping[str, str],
) -> dict[str, Any]:
    """Write pairs; return the SHA-256 of their "files" and why images were "skipped".

    Files with another SHA-256 than that which is `known` are damaged, and made again. Raises
    ValueError where fewer are fit than `count`.
    """
    files: dict[str, str] = {}
    skipped: dict[str, str] = {}
    # Names are drawn, not numbers: a folder and a tar of the same files give the same pairs
    remaining = iter(sorted(members, key=lambda member: draw(seed, member)))
    with tqdm(total=count, unit="pair") as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        while progress.n < count:
            chunk = list(islice(remaining, min(AHEAD, count - progress.n)))
            if not chunk:
                raise ValueError(f"'{source}' has only {progress.n} images fit for {count} pairs.")
            made = pool.map(partial(make_pair, out, seed, known), chunk)
            for member, (sha256, reason) in zip(chunk, made, strict=True):
                if reason:
                    skipped[member.name] = reason
                else:
                    files |= sha256
                    progress.update()
    return {"skipped": skipped, "files": dict(sorted(files.items()))}


def draw(seed: int, member: Member) -> int:
    """Draw a number for an image, by its name without the suffix."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stem(member)}".encode()).digest())


def stem(member: Member) -> str:
    return Path(member.name).with_suffix("").as_posix()


def make_pair(
    out: Path, seed: int, known: Mapping[str, str], member: Member
) -> tuple[dict[str, str], str]:
    """Write the pair of an image unless it is there and whole; return its files' SHA-256.

    Also says why the image is unfit, if so.
    """
    paths = [f"{folder}/{stem(member)}.png" for folder in ("gt", "lq")]
    sums = {path: file_sha256(out / path) for path in paths if (out / path).is_file()}
    if any(path not in sums or sums[path] != known.get(path, sums[path]) for path in paths):
        try:
            photo = read_rgb(read_member(member), member.name)
        except (OSError, ValueError) as error:
            return {}, str(error)
        if min(photo.shape[:2]) < SIZE:
            return {}, f"it is smaller than {SIZE} pixels: {photo.shape[1]}x{photo.shape[0]}"
        pair = degrade_square(np.random.default_rng(draw(seed, member)), photo)
        for path, image in zip(paths, pair, strict=True):
            _, png = cv2.imencode(".png", image[..., ::-1])
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / path, png.tobytes())
            sums[path] = file_sha256(out / path)
    return sums, ""


def degrade_square(rng: np.random.Generator, photo: Photo) -> Pair:
    """Resize the centre square of a photograph to the ground truth, and degrade it."""
    side = min(photo.shape[:2])
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    hr = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return Pair(hr, degrade(rng, hr, **imagenet_test().to_dict()))


if __name__ == "__main__":
    cv2.setNumThreads(1)
    typer.run(main)
