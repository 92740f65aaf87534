"""Image files where they lie: in folders, or inside tars, which are read without unpacking them."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from upsr_jax.files.find import READ_SUFFIXES, check_local


class Member(NamedTuple):
    """A file of a source: `size` bytes from `offset` on in `file`, or all of it if size is -1.

    `source` and `name` say it for people; together they are the path of a file in a folder.
    """

    source: str
    name: str
    file: str
    offset: int
    size: int


def list_members(sources: Sequence[str]) -> tuple[list[Member], dict[str, str]]:
    """List the images of folders and tars, by their suffix; and the other files, with the reason.

    Folders are searched throughout and sorted by path. Tars keep their order, and so do the tars
    inside them: ILSVRC2012_img_train.tar holds one for each class. Raises FileNotFoundError or
    ValueError where a source is missing, is neither, or holds no image.
    """
    images: list[Member] = []
    skipped: dict[str, str] = {}
    check_local(*sources)
    for source in sources:
        before = len(images)
        for member, reason in tqdm(_walk(source), f"Listing {source}", unit=" files"):
            if not reason and member.name.lower().endswith(READ_SUFFIXES):
                images.append(member)
            else:
                reason = reason or f"its name does not end in {', '.join(READ_SUFFIXES)}"
                skipped[f"{source}/{member.name}"] = reason
        if len(images) == before:
            raise ValueError(f"'{source}' holds no image ({', '.join(READ_SUFFIXES)}).")
    return images, skipped


def read_member(member: Member) -> bytes:
    """Read the bytes of an image file."""
    with open(member.file, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _walk(source: str) -> Iterator[tuple[Member, str]]:
    """Yield every file of a source, with the reason why it is unfit, if so."""
    if os.path.isdir(source):
        files = [
            os.path.join(parent, name)
            for parent, _, names in os.walk(source, followlinks=True)
            for name in names
        ]
        for file in sorted(files):
            name = Path(file).relative_to(source).as_posix()
            hidden = "its name begins with a dot" if os.path.basename(file)[0] == "." else ""
            yield Member(source, name, file, 0, -1), hidden
    elif os.path.isfile(source):
        with open(source, "rb") as file:
            try:
                yield from _walk_tar(Member(source, "", source, 0, -1), file)
            except tarfile.ReadError as error:
                raise ValueError(
                    f"'{source}' is neither a folder nor a whole, uncompressed tar: {error}."
                ) from error
    else:
        raise FileNotFoundError(f"'{os.path.abspath(source)}' does not exist.")


def _walk_tar(tar: Member, content: Any) -> Iterator[tuple[Member, str]]:
    with tarfile.open(fileobj=content, mode="r:") as entries:
        for entry in entries:
            if entry.isdir():
                continue
            name = f"{tar.name}/{entry.name}".lstrip("/")
            member = Member(tar.source, name, tar.file, tar.offset + entry.offset_data, entry.size)
            if not entry.isreg():
                yield member, "it is a link or a device"
            elif name.lower().endswith(".tar"):
                yield from _walk_tar(member, entries.extractfile(entry))
            else:
                yield member, ""
