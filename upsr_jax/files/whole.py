"""Write files whole or not at all, hash them, and keep a folder for one process and one setting."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = ".lock"


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON whole or not at all."""
    write_whole(path, json.dumps(value, indent=2).encode() + b"\n")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, even if the power fails; on an error nothing is left."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read the JSON that says how a folder was begun; raise ValueError if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: remove {path.parent}, or choose another folder ({error})"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that lock it out of a folder; raise ValueError if one is at work in it.

    The lock ends with the context, or the process.
    """
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing to {folder}: wait for its end, or choose another "
                "folder"
            ) from error
        except OSError:  # a file system without locks
            pass
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
