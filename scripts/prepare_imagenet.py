"""Pack photographs into ArrayRecord shards: from folders, or from tars such as ILSVRC2012's.

python scripts/prepare_imagenet.py ILSVRC2012_img_train.tar --out data/imagenet/train
python scripts/prepare_imagenet.py photos/ more/ --out data/packed --shards 16

Tars are read as they are, without unpacking. Every image is decoded to see that it can be; what
can't be is left out and listed in OUT/manifest.json. Stopped, even by kill -9, the same command
goes on from the last whole shard, to the same bytes; it makes damaged ones again. A folder that is
done becomes an entry of config.data.folders.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import cv2
import typer
from tqdm import tqdm

from upsr_jax.data import records
from upsr_jax.data.archives import Member, list_members, read_member
from upsr_jax.files.find import check_local
from upsr_jax.files.names import show
from upsr_jax.files.photos import read_rgb
from upsr_jax.files.whole import check_begun, file_sha256, locked, write_json

SHARD_IMAGES = 5000  # of ImageNet, half a gigabyte
AHEAD = 256  # images read and checked before they are written


def main(
    sources: Annotated[list[str], typer.Argument(help="Folders of images, and tars of them.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    shards: Annotated[
        int | None, typer.Option(min=1, help=f"Files to write; default: one per {SHARD_IMAGES}.")
    ] = None,
) -> None:
    """Pack the images of SOURCES into OUT and print what came of it."""
    try:
        manifest = pack([os.path.abspath(source) for source in sources], out, shards)
    except (OSError, ValueError) as error:
        sys.exit(show(f"prepare_imagenet: {error}"))
    size = sum((out / name).stat().st_size for name in manifest["shards"]) / 1e9
    print(f"{out}: {manifest['count']} images in {manifest['num_shards']} shards, {size:.3f} GB.")
    if skipped := len(manifest["skipped"]):
        print(f"{skipped} files were left out; {records.manifest_path(out)} says why.")


def pack(sources: Sequence[str], out: Path, num_shards: int | None) -> dict[str, Any]:
    """Write the shards that `out` doesn't hold yet; return the manifest.

    Raises ValueError where `out` was begun with other sources or settings or is in use, and OSError
    where a source can't be read or `out` not be written.
    """
    check_local(out)
    members, unfit = list_members(sources)
    num_shards = num_shards or -(-len(members) // SHARD_IMAGES)
    if num_shards > len(members):
        raise ValueError(f"{len(members)} images can't fill {num_shards} shards: ask for fewer.")
    with locked(out):
        manifest = begin(out, sources, num_shards, members, unfit)
        pack_shards(out, manifest, members)
    return manifest


def begin(
    out: Path,
    sources: Sequence[str],
    num_shards: int,
    members: Sequence[Member],
    unfit: dict[str, str],
) -> dict[str, Any]:
    """Write the manifest of shards to come, or read the one that is there.

    Raises ValueError if that one was begun with other sources, other files in them or settings.
    """
    listing = hashlib.sha256()
    for member in members:
        listing.update(f"{member.source}/{member.name} {member.size}\n".encode())
    settings = {
        "format": records.FORMAT,
        "sources": list(sources),
        "num_shards": num_shards,
        "num_files": len(members),
        "listing_sha256": listing.hexdigest(),
    }
    path = records.manifest_path(out)
    if not path.is_file():
        manifest = {**settings, "count": None, "skipped": unfit, "shards": {}}
        write_json(path, manifest)
        return manifest
    manifest = records.read_manifest(out)
    check_begun(out, manifest, settings)
    return manifest


def pack_shards(out: Path, manifest: dict[str, Any], members: Sequence[Member]) -> None:
    """Write the missing and damaged shards one by one, each with its entry in the manifest."""
    num_shards = manifest["num_shards"]
    with (
        tqdm(total=len(members), unit="image") as progress,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for i in range(num_shards):
            name = f"images-{i:05d}-of-{num_shards:05d}.array_record"
            start, end = (len(members) * k // num_shards for k in (i, i + 1))
            shard = manifest["shards"].get(name)
            if shard and (out / name).is_file():
                if file_sha256(out / name) == shard["sha256"]:
                    progress.update(end - start)
                    continue
                progress.write(f"{out / name} is damaged and made again", file=sys.stderr)
            files = checked_files(members[start:end], pool, progress, manifest["skipped"])
            manifest["shards"][name] = records.write_shard(out / name, files)
            write_json(records.manifest_path(out), manifest)
    manifest["count"] = sum(shard["count"] for shard in manifest["shards"].values())
    write_json(records.manifest_path(out), manifest)


def checked_files(
    members: Sequence[Member], pool: ThreadPoolExecutor, progress: tqdm, skipped: dict[str, str]
) -> Iterator[bytes]:
    """Yield the image files that can be decoded, in order, and put the others into `skipped`."""
    remaining = iter(members)
    while chunk := list(islice(remaining, AHEAD)):
        for member, (data, reason) in zip(chunk, pool.map(load, chunk), strict=True):
            progress.update()
            if reason:
                skipped[f"{member.source}/{member.name}"] = reason
            else:
                yield data


def load(member: Member) -> tuple[bytes, str]:
    """Read an image file; also say why it can't be read or decoded, if so."""
    data = b""
    try:
        data = read_member(member)
        read_rgb(data, member.name)
    except (OSError, ValueError) as error:
        return data, str(error)
    return data, ""


if __name__ == "__main__":
    cv2.setNumThreads(1)
    typer.run(main)
