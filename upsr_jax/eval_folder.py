"""The folder of one evaluation: images, a row of numbers for each as it is done, and results.json.

A row is appended after its images are written, so a kill at any time loses no more than what was
at work. Several processes write rows of their own into one folder that all of them see.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from upsr_jax.files import write_json, write_whole
from upsr_jax.image_io import write_image
from upsr_jax.inference import Restoration

OPTIONS, RESULTS = "options.json", "results.json"


def begin(out: Path, options: Mapping[str, Any]) -> None:
    """Make the folder, or make ready to go on in it; call it on every process.

    Raises:
      ValueError: it was begun with other options.
      OSError: it can't be written, or another host doesn't see it.
    """
    options = json.loads(json.dumps(options))
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / OPTIONS).exists():
            write_json(out / OPTIONS, options)
        if json.loads((out / OPTIONS).read_text()) == options:
            for file in out.glob("rows*.jsonl"):
                keep_whole_rows(file)
            for part in out.rglob(".upsr-*.part"):  # of files that a kill kept from being written
                part.unlink()
    multihost_utils.sync_global_devices("evaluation folder")
    if not (out / OPTIONS).exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} doesn't see {out / OPTIONS}, which process 0 has "
            "written: choose a folder that all hosts share"
        )
    begun = json.loads((out / OPTIONS).read_text())
    differing = [key for key in begun | options if begun.get(key) != options.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{out} holds an evaluation with {key} {begun.get(key)!r}, not {options.get(key)!r}: "
            "choose another folder, or remove this one"
        )


class Rows:
    """This process's file of rows, to which threads append."""

    def __init__(self, out: Path):
        process = f".{jax.process_index()}" if jax.process_count() > 1 else ""
        self.lock = threading.Lock()
        self.file = (out / f"rows{process}.jsonl").open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole or, if the process is killed, cut off."""
        with self.lock:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def keep_whole_rows(file: Path) -> None:
    """Drop what a kill cut off, and broken images, which are tried again."""
    rows = [row for row in _parse(file) if "broken" not in row]
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of all processes, by the names of their images."""
    files = sorted(out.glob("rows*.jsonl"))
    return {row["name"]: row for file in files for row in _parse(file)}


def is_done(out: Path, name: str, rows: Mapping[str, Any]) -> bool:
    """Tell whether an image has its row and its files."""
    return name in rows and all(file.exists() for file in image_files(out, name))


def wait_for_rows(out: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Wait until all processes have done their images; return the rows by name, in order.

    No collective: those of a CPU fail after 30 s of waiting. If a process is lost, JAX ends this.
    """
    while set(names) - (rows := read_rows(out)).keys():
        time.sleep(0.5)
    return {name: rows[name] for name in names}


def image_files(out: Path, name: str) -> tuple[Path, Path]:
    """Name the files of a restored image and of its noise weight."""
    return out / "images" / f"{name}.png", out / "uncertainty" / f"{name}.png"


def save_images(out: Path, name: str, restored: Restoration) -> None:
    """Write an image and its noise weight, the mean of the channels as grey, with 8 bits.

    Raises ImageError if that can't be done.
    """
    image_file, weight_file = image_files(out, name)
    write_image(image_file, np.round((restored.image + 1) * 127.5).astype(np.uint8), overwrite=True)
    weight = np.round(255 * restored.noise_weight.mean(axis=-1, keepdims=True)).astype(np.uint8)
    write_image(weight_file, weight.repeat(3, axis=-1), overwrite=True)


def _parse(file: Path) -> list[dict[str, Any]]:
    lines = file.read_bytes().splitlines(keepends=True)  # only a kill leaves one without its end
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
