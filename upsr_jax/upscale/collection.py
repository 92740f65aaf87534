"""Upscale many pictures: choose them, share them over processes, and skip what is done.

Each result carries a note, in its EXIF data, of everything that decided it. To go on after a stop
or a kill, the same command compares the notes: a result whose note is the one it would write now is
kept, and any other file in its place is never replaced without being asked.
"""

import hashlib
import itertools
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from upsr_jax.cluster.join import read_settings
from upsr_jax.cluster.roll_call import roll_call
from upsr_jax.files.find import READ_SUFFIXES, UNREAD_SUFFIXES, check_local, find_images
from upsr_jax.files.names import alike, of_folders, show, without_suffixes
from upsr_jax.files.photos import (
    MAX_PIXELS,
    ImageError,
    count_pixels,
    read_note,
    read_photo,
)
from upsr_jax.files.whole import file_sha256, remove_parts
from upsr_jax.files.write_photo import check_storable, format_of, is_whole, write_image
from upsr_jax.upscale.tiles import SCALE
from upsr_jax.upscale.upscaler import Upscaler


class Job(NamedTuple):
    """One picture to upscale and where its result goes."""

    source: Path
    target: Path


class Counts(NamedTuple):
    """What became of jobs; `kept` had their result before."""

    done: int
    kept: int
    failed: int


def plan(inputs: list[Path], out: Path, format: str | None) -> tuple[list[Job], Path, list[str]]:
    """List the pictures to upscale, the folder that all results lie in, and the problems.

    `out` is that folder, or for one picture a name with a picture's suffix. Raises ValueError if
    such a name can't be that of the result.
    """
    if out.suffix.lower() not in READ_SUFFIXES + UNREAD_SUFFIXES or os.path.isdir(out):
        jobs, problems = plan_jobs(inputs, out, f".{format or 'png'}")
        return jobs, out, problems
    if len(inputs) > 1 or os.path.isdir(inputs[0]):
        raise ValueError(f"--out {out} names one picture, and here may be several; name a folder.")
    check_storable(out, 1, 1, has_alpha=False)
    if format and format != format_of(out):
        raise ValueError(f"--out {out} is not of --format {format}; leave one of them out.")
    return [Job(inputs[0], out)], out.parent, []


def plan_jobs(inputs: list[Path], out: Path, suffix: str) -> tuple[list[Job], list[str]]:
    """List the pictures to upscale, and the problems with the inputs.

    A result lies in `out` as the picture lies in its folder; with that folder's name in front where
    several are given, or two pictures of several would have one result, and with the picture's own
    suffix where only that tells two apart.
    """
    check_local(out, *inputs)
    folders = of_folders(p for p in inputs if os.path.isdir(p) and _real(p) != _real(out))
    roots, problems = find_all(inputs, out)
    names = {p: folders.get(root, Path()) / p.relative_to(root) for p, root in roots.items()}

    def find_alike() -> list[list[Path]]:
        return alike({path: name.with_suffix("") for path, name in names.items()})

    for path in itertools.chain(*find_alike()):  # where a name is scarce, no file gets it in vain
        try:
            count_pixels(path)
        except ImageError as error:
            problems.append(str(error))
            del names[path]
    clashing = [
        path for group in find_alike() if len({roots[p] for p in group}) > 1 for path in group
    ]
    folders = of_folders({roots[path] for path in clashing})
    names |= {path: folders[roots[path]] / path.relative_to(roots[path]) for path in clashing}
    bare = without_suffixes(list(names.values()))
    targets = {path: out / f"{name}{suffix}" for path, name in zip(names, bare, strict=True)}
    for path, *others in alike(targets):
        both = " and ".join(map(str, others))
        problems.append(f"{path} and {both} would become {targets[path]}; rename one of them.")
        for other in (path, *others):
            del targets[other]
    real = {os.path.realpath(path): path for path in targets}
    for path, target in list(targets.items()):
        other = real.get(os.path.realpath(target), path)
        if other != path:
            problems.append(
                f"{path}: its result would replace {other}, which is to be upscaled as well; "
                "choose another --out."
            )
            del targets[path]
    return list(itertools.starmap(Job, targets.items())), problems


def find_all(inputs: list[Path], out: Path) -> tuple[dict[Path, Path], list[str]]:
    """Find the pictures, with the folder that each was found in, and list the problems.

    Earlier results in `out` are none where other inputs are given as well, as `*` gives them.
    """
    found: dict[str, tuple[Path, Path]] = {}  # by whole paths, as some may be given twice
    problems: list[str] = []
    below = _real(out)
    alone = all(_real(given).startswith(below) for given in inputs)
    for given in inputs:
        pictures, root = [], given
        if os.path.isdir(given) and _real(given) == below:
            if alone or not all(map(is_result, find_images(given, on_error=lambda _: None))):
                problems.append(
                    f"{given}: its pictures are not upscaled, as the results go there; "
                    "choose another --out."
                )
        elif os.path.isdir(given):
            pictures, left_out = find_sources(given, out)
            problems += left_out
            if not pictures and not left_out:
                suffixes = ", ".join(READ_SUFFIXES)
                problems.append(f"{given}: no images in this folder; looked for {suffixes}.")
        elif not os.path.exists(given):  # unlike Path.exists, it never raises
            problems.append(f"{given}: no such file.")
        elif alone or not (_real(given).startswith(below) and is_result(given)):
            pictures, root = [given], given.parent
        for path in pictures:
            found.setdefault(os.path.abspath(path), (path, root))
    return dict(found.values()), problems


def is_result(path: str | Path) -> bool:
    """Tell whether a picture bears a note of this program."""
    return (read_note(path) or "").startswith("upsr_jax ")


def find_sources(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """List the pictures in a folder, without the results if `out` lies in it, and the problems.

    Those are subfolders that cannot be read, and pictures of formats that are not.
    """
    problems, pictures = [], []
    above, below = _real(folder), _real(out)
    for path in find_images(
        folder,
        READ_SUFFIXES + UNREAD_SUFFIXES,
        lambda error: problems.append(f"{error.filename}: cannot be read ({error.strerror})."),
    ):
        if below.startswith(above) and os.path.realpath(path).startswith(below):
            continue
        if path.lower().endswith(READ_SUFFIXES):
            pictures.append(Path(path))
        else:
            problems.append(f"{path}: this format is not read; save it as JPEG or PNG.")
    return pictures, problems


def _real(path: Path) -> str:
    """Resolve a folder, its end marked; Path.resolve fails on links in a circle."""
    return os.path.join(os.path.realpath(path), "")


def meet_others(
    coordinator: str | None, processes: int | None, process_id: int | None, plan: Any
) -> tuple[int, int]:
    """Wait until all processes of the run are there; return which of them this is, of how many.

    All must have the same `plan`, by its repr. They share no JAX runtime, as no result needs two of
    them: should one be lost, the others still end their shares. Raises ValueError or OSError, as
    `join.initialize` does.
    """
    settings = read_settings(coordinator, processes, process_id, os.environ)
    if settings is None or settings.process_count == 1:
        return 0, 1
    digest = hashlib.sha256(repr(plan).encode()).hexdigest()
    roll_call(settings._replace(plan=digest), timeout=300)
    if settings.local_device_ids:  # processes on one host, with a device each
        visible = ",".join(map(str, settings.local_device_ids))
        jax.config.update("jax_cuda_visible_devices", visible)
        jax.config.update("jax_rocm_visible_devices", visible)
    return settings.process_id, settings.process_count


def take_share(jobs: list[Job], out: Path, process_id: int, process_count: int) -> list[Job]:
    """Choose the jobs of one process by the names of their results.

    A name's process depends on nothing else, so processes agree without a word between them.
    """

    def owner(job: Job) -> int:
        name = job.target.relative_to(out).as_posix()
        return zlib.crc32(os.fsencode(name)) % process_count

    return [job for job in jobs if owner(job) == process_id]


def run_jobs(jobs: list[Job], upscaler: Upscaler, seed: int, overwrite: bool) -> Counts:
    """Upscale pictures, several at once, and report those that fail."""
    done = kept = failed = 0
    for folder in {job.target.parent for job in jobs}:
        remove_parts(folder)
    room = Room(MAX_PIXELS)  # so that many pictures take no more memory than the largest one
    # Twice the tiles that run at once, so that a batch fills while one runs; and those that read
    # and write.
    threads = min(len(jobs), 2 * upscaler.batch + (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        alone = len(jobs) == 1
        futures = {
            pool.submit(run_job, job, upscaler, seed, overwrite, room, alone): job for job in jobs
        }
        try:
            finished = as_completed(futures)
            for future in tqdm(finished, total=len(jobs), unit="image", disable=None):
                try:
                    is_new = future.result()
                except ImageError as error:
                    tqdm.write(show(error), file=sys.stderr)
                    failed += 1
                except (FloatingPointError, MemoryError, OSError) as error:
                    tqdm.write(show(f"{futures[future].source}: {error}"), file=sys.stderr)
                    failed += 1
                else:
                    done += is_new
                    kept += not is_new
        except BaseException:
            upscaler.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Counts(done, kept, failed)


def run_job(
    job: Job, upscaler: Upscaler, seed: int, overwrite: bool, room: "Room", progress: bool
) -> bool:
    """Upscale one picture, or return False if that has been done.

    Raises ImageError, before the work, if its result cannot be written.
    """
    pixels = count_pixels(job.source)
    # Before the picture is read: should it change meanwhile, the next run finds another one.
    note = upscaler.describe(file_sha256(job.source), seed)

    def is_done() -> bool:
        return read_note(job.target) == note and is_whole(job.target, SCALE**2 * pixels)

    exists = os.path.exists(job.target)
    is_empty = exists and os.path.getsize(job.target) == 0  # as a kill leaves it without links
    if exists and not is_empty:
        if job.target.samefile(job.source):
            raise ImageError(f"{job.source}: its result would replace it; choose another --out.")
        if is_done():
            return False
        if not overwrite:
            raise ImageError(
                f"{job.source}: {job.target} exists already, and not as this command makes it; "
                "add --overwrite to replace it."
            )
    with room.hold(pixels):
        image, kept, _ = read_photo(job.source)
        height, width, channels = image.shape
        check_storable(job.target, 4 * height, 4 * width, has_alpha=channels == 4)
        result = upscaler(image, seed, progress)
        try:
            write_image(job.target, result, overwrite or is_empty, note, kept)
        except ImageError:
            if is_done():  # by another process with the same command, meanwhile
                return False
            raise
    return True


class Room:
    """Room in memory for so many pixels at once."""

    def __init__(self, pixels: int):
        self.pixels = pixels
        self.held = 0
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait for room and keep it as long as the context lasts."""
        with self.changed:
            self.changed.wait_for(lambda: self.held + pixels <= self.pixels)
            self.held += pixels
        try:
            yield
        finally:
            with self.changed:
                self.held -= pixels
                self.changed.notify_all()
