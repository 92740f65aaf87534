"""Folders of ArrayRecord shards, an image file a record, as prepare_imagenet.py writes them.

Beside the shards lies `manifest.json`: what they were made of, how many records each holds, its
SHA-256, and the files that were left out, with the reasons. `count`, of all, is null until the
last shard is written.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from upsr_jax.files.whole import file_sha256, whole_file

FORMAT = "upsr_jax image records"


def manifest_path(folder: str | Path) -> Path:
    """Return where the manifest of a folder of records lies."""
    return Path(folder) / "manifest.json"


def is_records(folder: str | Path) -> bool:
    """Tell whether a folder has a manifest of records, be it whole or not."""
    path = manifest_path(folder)
    return path.is_file() and FORMAT in path.read_text()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest; raises ValueError if it is another kind of file."""
    path = manifest_path(folder)
    try:
        manifest = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"'{path}' does not describe records of scripts/prepare_imagenet.py.")
    return manifest


def write_shard(path: Path, records: Iterable[bytes]) -> dict[str, Any]:
    """Write a shard whole or not at all; return its "count" of records and its "sha256".

    Raises OSError where it can't be written.
    """
    count = 0
    with whole_file(path) as file:
        try:
            # One record a group, as random access needs it; image files don't get smaller
            writer = ArrayRecordWriter(file.name, "group_size:1,uncompressed")
            for record in records:
                writer.write(record)
                count += 1
            writer.close()
        except RuntimeError as error:
            reason = str(error).partition(";")[0]  # what follows names the unfinished file
            raise OSError(
                f"'{path}' can't be written: {reason}. Make room on that disk, then give the same "
                "command again."
            ) from error
        sha256 = file_sha256(Path(file.name))
    return {"count": count, "sha256": sha256}


def open_shards(folder: str) -> tuple[ArrayRecordDataSource, dict[str, int]]:
    """Open the shards of a folder; also return their names, with their numbers of records.

    Raises ValueError unless all are there, finished, and with the records that the manifest counts.
    """
    manifest = read_manifest(folder)
    shards = {name: shard["count"] for name, shard in manifest["shards"].items()}
    if manifest["count"] is None:
        raise ValueError(
            f"'{folder}' is unfinished, with {len(shards)} of {manifest['num_shards']} shards: "
            "run prepare_imagenet.py as before, and it goes on."
        )
    paths = []
    for name, count in shards.items():
        path = os.path.join(folder, name)
        found = ArrayRecordReader(path).num_records()  # of a file that is missing or torn, 0
        if found != count:
            raise ValueError(
                f"'{path}' has {found} records, not {count} as its manifest says: it is missing or "
                "damaged. Copy it again, or delete it and run prepare_imagenet.py as before."
            )
        paths.append(f"{path}[0:{count}]")  # so that it isn't opened again to count
    return ArrayRecordDataSource(paths), shards
