"""Write files whole or not at all, hash them, and keep a folder for one process and one setting."""

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import lock_descriptor

LOCK = ".lock"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What a file system without hard links, or one that has too many, says to one more.
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class DiskFullError(OSError):
    """There is no room for a file; the sentence names it, and the cure."""


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's error of a full disk into a DiskFullError of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        full = DiskFullError(
            f"{path} could not be written ({os.strerror(error.errno)}): make room on that disk, "
            "then give the same command again"
        )
        full.errno = error.errno
        raise full from error


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON whole or not at all."""
    write_whole(path, json.dumps(value, indent=2).encode() + b"\n")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as `whole_file` does, in place of what is there."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Give a file to write, beside `path`; it gets that name in one step when the context ends.

    By then it is on the disk, even if the power fails. On an error nothing is left. A kill leaves
    at most a hidden `.upsr-*.part`, for `remove_parts`, and on a file system without links an empty
    file at `path`. Raises FileExistsError if `path` exists, unless `overwrite`, and DiskFullError.
    """
    part = part_of(path)
    try:
        with naming_full_disk(path), part.open("xb") as file:
            with suppress(OSError):  # a file system without locks
                lock_descriptor(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(part, path, overwrite)
    except OSError as error:
        if error.strerror is not None and error.filename in (None, str(part)):
            error.filename = str(path)  # which says more than the temporary name, or none
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def part_of(path: Path) -> Path:
    """Choose a name beside `path` for what is not whole yet."""
    return path.with_name(f".upsr-{secrets.token_hex(8)}.part")


def remove_parts(folder: Path, below: bool = False) -> None:
    """Remove what killed processes left of unfinished files; the others hold theirs locked.

    In a folder, and in all below it if asked.
    """
    for part in folder.glob(f"{'**/' * below}.upsr-*.part"):
        with suppress(OSError):
            if part.is_dir():
                with _lock_folder(part) as is_free:
                    if is_free:
                        shutil.rmtree(part)
                continue
            with part.open("r+b") as file:
                held = not lock_descriptor(file.fileno(), blocking=False)
            if not held:
                part.unlink()


def _publish(part: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name in one step; unlike a rename, a link never replaces a file."""
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(part, path)
        except OSError:
            path.unlink()
            raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill with files, beside `folder`, which it replaces when the context ends.

    The files are to be written by `whole_file`. A failure leaves everything as it was, and what
    killed processes left beside is removed. A kill leaves at most a hidden `.upsr-*.part`; `folder`
    is whole at every moment, or on a few file systems there again after `restore_former`.
    """
    remove_parts(folder.parent)
    part = part_of(folder)
    new = part.with_suffix(".new")
    with naming_full_disk(folder), ExitStack() as stack:
        new.mkdir()
        try:
            with suppress(OSError):  # a file system without locks, or Windows
                stack.enter_context(_lock_folder(new))
            new.rename(part)  # from now on `remove_parts` sees it, and the lock
            yield part
            sync(part)
            if not folder.exists():
                part.rename(folder)
            elif not _exchange(part, folder):
                former = _former_of(folder)
                folder.rename(former)
                try:
                    part.rename(folder)
                except BaseException:
                    former.rename(folder)
                    raise
                former.rename(part)
            sync(folder.parent)
        finally:
            for left in (new, part):  # what is not whole, or has been replaced
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _lock_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder and tell if that worked, or if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system has none."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    at_cwd, exchange = -100, 2
    return renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


def _former_of(folder: Path) -> Path:
    return folder.parent / f".upsr-{folder.name}.former"


def restore_former(folder: Path) -> None:
    """Bring a folder back if `whole_folder` was killed in the middle of replacing it in two steps.

    Raises OSError if it can't be renamed.
    """
    former = _former_of(folder)
    if not os.path.exists(former):  # unlike Path.exists, it never raises
        return
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
    else:
        former.rename(folder)


def sync(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk."""
    with suppress(PermissionError):  # Windows, which opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def parse_json(data: bytes) -> Any:
    """Parse JSON, longer integers than any of ours as floats; raise ValueError if it is damaged."""
    try:
        return json.loads(data, parse_int=lambda text: (int if len(text) <= 20 else float)(text))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON that says how a folder was begun; raise ValueError if it is damaged."""
    try:
        value = parse_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"no object but a {type(value).__name__}")
        return value
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: remove {path.parent}, or choose another folder ({error})"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that lock it out of a folder; raise ValueError if one is at work in it.

    The folder is made if missing. The lock ends with the context, or the process. What a killed
    process left is removed.
    """
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        free = True
        with suppress(OSError):  # a file system without locks
            free = lock_descriptor(lock.fileno(), blocking=False)
        if not free:
            raise ValueError(
                f"another process is writing to {folder}: wait for its end, or choose another "
                "folder"
            )
        remove_parts(folder, below=True)
        yield


def check_begun(folder: Path, begun: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a folder was `begun`, as its JSON says, with other values of settings."""
    for key, value in json.loads(json.dumps(settings)).items():
        if begun.get(key) != value:
            raise ValueError(
                f"{folder} was begun with {key} = {begun.get(key)!r}, and this would be {value!r}: "
                "give the command as it was, or choose another folder"
            )


def file_sha256(path: Path) -> str:
    """Hash a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
