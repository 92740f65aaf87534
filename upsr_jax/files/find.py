"""Find the picture files in folders, by their suffix, and tell folders from URLs."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

READ_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif", ".avifs", ".mpo"),
    # With the extra `photos`
    *(".heic", ".heif", ".hif", ".jxl"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
UNREAD_SUFFIXES = (".jp2",)


# As pathlib leaves it, too, which makes one slash of two; not a drive of Windows.
URL = re.compile(r"(^|/)[A-Za-z][A-Za-z0-9+.-]+:/")


def check_local(*paths: str | Path) -> None:
    """Raise ValueError for a path that is a URL, as of a bucket: it would become a local folder."""
    for path in map(str, paths):
        if URL.search(path):
            raise ValueError(
                f"{path} is a URL, and only folders are read and written: mount the bucket as one "
                '("Storage" in docs/clusters.md says how), and name that'
            )


def find_images(
    folder: str | Path,
    suffixes: tuple[str, ...] = READ_SUFFIXES,
    on_error: Callable[[OSError], None] | None = None,
) -> list[str]:
    """List the image files in a folder and its subfolders, by their suffix, sorted.

    Links are followed, but not in a circle; files and subfolders whose names begin with a dot are
    left out. There are none in a missing folder; one that cannot be read raises OSError, or is
    left out where that is given to `on_error`. Raises ValueError for a URL.
    """
    check_local(folder)
    if not os.path.isdir(folder):
        return []
    return sorted(_walk(os.fspath(folder), (), suffixes, on_error))


def _walk(
    folder: str,
    above: tuple[str, ...],
    suffixes: tuple[str, ...],
    on_error: Callable[[OSError], None] | None,
) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        names = os.listdir(folder)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            yield from _walk(path, (*above, real), suffixes, on_error)
        elif name.lower().endswith(suffixes):
            yield path
