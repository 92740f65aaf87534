"""Upscale many pictures: choose them, share them over processes, and skip what is done.

Each result carries a note, in its EXIF data, of everything that decided it. To go on after a stop
or a kill, the same command compares the notes: a result whose note is the one it would write now is
kept, and any other file in its place is never replaced without being asked.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from upsr_jax.cluster.join import read_settings
from upsr_jax.cluster.roll_call import roll_call
from upsr_jax.files.find import READ_SUFFIXES, UNREAD_SUFFIXES, check_local, find_images
from upsr_jax.files.names import alike, of_folders, show
from upsr_jax.files.open_photo import MAX_PIXELS, open_result
from upsr_jax.files.photos import (
    ImageError,
    count_pixels,
    read_note,
    read_photo,
    read_size,
)
from upsr_jax.files.whole import remove_parts
from upsr_jax.files.write_photo import SUFFIXES, format_of, is_whole, write_image, write_photo
from upsr_jax.upscale.photo import (
    AS_IT_WAS,
    begin,
    caught_warnings,
    describe,
    draw_uncertainty,
)
from upsr_jax.upscale.sizes import Wanted, result_size, runs_twice
from upsr_jax.upscale.tiles import SCALE
from upsr_jax.upscale.upscaler import Progress, Upscaler


class Job(NamedTuple):
    """One picture to upscale and where its result goes."""

    source: Path
    target: Path


class Counts(NamedTuple):
    """What became of jobs; `kept` had their result before."""

    done: int
    kept: int
    failed: int


class Outcome(NamedTuple):
    """What became of one job: the result of this size is at `target`, `earlier` or now."""

    target: Path
    width: int
    height: int
    seconds: float
    warnings: tuple[str, ...] = ()
    earlier: bool = False


def names_picture(out: Path) -> bool:
    """Tell whether --out is the name of one result and not of their folder."""
    return out.suffix.lower() in READ_SUFFIXES + UNREAD_SUFFIXES and not os.path.isdir(out)


def plan(
    inputs: list[Path], out: Path, wanted: Wanted, suffix: str = ""
) -> tuple[list[Job], Path, list[str], Wanted]:
    """List the pictures to upscale, the folder that all results lie in, and the problems.

    `out` is that folder, or for one picture a name with a picture's suffix, whose format is then
    wanted; names of results in a folder end in `suffix`. Raises ValueError if such a name can't be
    that of the result.
    """
    if os.path.basename(suffix) != suffix:
        raise ValueError(f"--suffix {suffix} holds a separator of folders; leave it out.")
    if not names_picture(out):
        jobs, problems = plan_jobs(inputs, out, wanted.format, suffix)
        return jobs, out, problems, wanted
    if len(inputs) > 1 or os.path.isdir(inputs[0]):
        raise ValueError(f"--out {out} names one picture, and here may be several; name a folder.")
    if suffix:
        raise ValueError(f"--out {out} names the result; leave out --suffix.")
    return [Job(inputs[0], out)], out.parent, [], with_format_of(out, wanted)


def with_format_of(out: Path, wanted: Wanted) -> Wanted:
    """Want the format that a result's name tells; raise ValueError if another one is wanted."""
    format = format_of(out)
    if wanted.format not in ("auto", format):
        raise ValueError(f"--out {out} is not of --format {wanted.format}; leave one of them out.")
    return dataclasses.replace(wanted, format=format)


def plan_jobs(
    inputs: list[Path], out: Path, format: str = "auto", suffix: str = ""
) -> tuple[list[Job], list[str]]:
    """List the pictures to upscale, and the problems with the inputs.

    A result lies in `out` as the picture lies in its folder; with that folder's name in front where
    several are given, or two pictures of several would have one result, and with the picture's own
    suffix where only that tells two apart. Of "auto" format it is named as the picture.
    """

    def ending(name: Path) -> str:
        own = SUFFIXES.get(name.suffix.lower(), "png")
        return f".{own if format == 'auto' else format}"

    check_local(out, *inputs)
    folders = of_folders(p for p in inputs if os.path.isdir(p) and _real(p) != _real(out))
    roots, problems = find_all(inputs, out)
    names = {p: folders.get(root, Path()) / p.relative_to(root) for p, root in roots.items()}

    def find_alike() -> list[list[Path]]:
        return alike({path: name.with_suffix(ending(name)) for path, name in names.items()})

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
    scarce = set(itertools.chain(*find_alike()))
    targets = {
        path: out / f"{name if path in scarce else name.with_suffix('')}{suffix}{ending(name)}"
        for path, name in names.items()
    }
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


def run_jobs(
    jobs: list[Job],
    upscaler: Upscaler,
    seed: int,
    overwrite: bool,
    wanted: Wanted = AS_IT_WAS,
    uncertainty: bool = False,
    on_end: Callable[[Job, Outcome | Exception], None] | None = None,
    quiet: bool = False,
) -> Counts:
    """Upscale pictures, several at once, and report those that fail.

    With `uncertainty` a map of it lies beside each result. `on_end` is told what became of each.
    A bar of megapixels is shown on a terminal, unless `quiet`, which leaves out warnings, too.
    """
    done = kept = failed = 0
    for folder in {job.target.parent for job in jobs}:
        remove_parts(folder)
    room = Room(MAX_PIXELS)  # so that many pictures take no more memory than the largest one
    threads = min(len(jobs), upscaler.threads)
    with MegapixelBar(jobs, wanted, quiet) as bar, ThreadPoolExecutor(threads) as pool:

        def run(job: Job) -> Outcome:
            progress = bar.of(job)
            return run_job(job, upscaler, seed, overwrite, room, wanted, uncertainty, progress)

        futures = {pool.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                try:
                    end = future.result()
                    done += not end.earlier
                    kept += end.earlier
                    for warning in () if quiet else end.warnings:
                        bar.say(warning)
                except (ImageError, FloatingPointError, MemoryError, OSError) as error:
                    end = error if isinstance(error, ImageError) else naming(job, error)
                    bar.say(end)
                    failed += 1
                bar.finish(job)
                if on_end is not None:
                    on_end(job, end)
        except BaseException:
            upscaler.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Counts(done, kept, failed)


def naming(job: Job, error: Exception) -> ImageError:
    """Put the picture's name before what went wrong with it."""
    return ImageError(f"{job.source}: {error}")


def run_job(
    job: Job,
    upscaler: Upscaler,
    seed: int,
    overwrite: bool,
    room: "Room",
    wanted: Wanted = AS_IT_WAS,
    uncertainty: bool = False,
    on_progress: Progress | None = None,
) -> Outcome:
    """Upscale one picture, or find that this has been done.

    Where the picture's own format is wanted and can't hold the result, that is a PNG. Raises
    ImageError, before the work, if the result cannot be written.
    """
    begun = time.monotonic()
    held, area = measure(job, wanted)
    # Before the picture is read: should it change meanwhile, the next run finds another one.
    note = describe(upscaler, job.source, wanted, seed)

    def find_done(target: Path) -> Outcome | None:
        if read_note(target) != note or not is_whole(target, area):
            return None
        if uncertainty and read_note(uncertainty_of(target)) != note:
            return None
        height, width = header_size(target) or (0, 0)
        return Outcome(target, width, height, time.monotonic() - begun, earlier=True)

    as_png = job.target.with_suffix(".png")
    for target in {job.target, as_png} if wanted.format == "auto" else {job.target}:
        if (found := find_done(target)) is not None:
            return found
    check_free(job.target, job.source, overwrite)
    with room.hold(held):
        with caught_warnings() as warnings:
            photo = read_photo(job.source)._replace(format=format_of(job.target))
        unsure = np.zeros(photo.pixels.shape[:2], np.float32) if uncertainty else None
        try:
            picture = begin(upscaler, photo, wanted, seed, note, unsure, on_progress)
        except ValueError as error:
            raise naming(job, error) from error
        target = job.target if picture.format == format_of(job.target) else as_png
        is_empty = check_free(target, job.source, overwrite)
        try:
            write_photo(target, *picture, overwrite=overwrite or is_empty)
            if unsure is not None:
                heat = draw_uncertainty(unsure, picture.height, picture.width)
                write_image(uncertainty_of(target), heat, overwrite=True, note=note)
        except ImageError:
            # by another process with the same command, meanwhile
            if (found := find_done(target)) is not None:
                return found
            raise
    seconds = time.monotonic() - begun
    return Outcome(target, picture.width, picture.height, seconds, tuple(warnings))


def measure(job: Job, wanted: Wanted) -> tuple[int, int]:
    """Tell by a picture's header the pixels held for it, and those of its result.

    Raises ImageError.
    """
    size = read_size(job.source)
    try:
        new = result_size(*size, wanted)
    except ValueError as error:
        raise naming(job, error) from error
    held = math.prod(size) * (SCALE**2 if runs_twice(size, new) else 1)
    return min(held, MAX_PIXELS), math.prod(new)


def check_free(target: Path, source: Path, overwrite: bool) -> bool:
    """Raise ImageError if a result may not be written here; tell if the file there is empty."""
    exists = os.path.exists(target)
    is_empty = exists and os.path.getsize(target) == 0  # as a kill leaves it without links
    if exists and not is_empty:
        if target.samefile(source):
            raise ImageError(f"{source}: its result would replace it; choose another --out.")
        if not overwrite:
            raise ImageError(
                f"{source}: {target} exists already, and not as this command makes it; "
                "add --overwrite to replace it."
            )
    return is_empty


def uncertainty_of(target: Path) -> Path:
    """Name the map of uncertainty that lies beside a result."""
    return target.with_name(f"{target.stem}.uncertainty.png")


def header_size(path: Path) -> tuple[int, int] | None:
    """Read height and width from a picture's header, as they are stored; None if that fails."""
    try:
        with open_result(path) as image:
            return image.height, image.width
    except Exception:  # decoders raise anything on damaged files
        return None


class MegapixelBar:
    """A bar of the pixels of all results, on stderr if that is a terminal."""

    def __init__(self, jobs: list[Job], wanted: Wanted, quiet: bool):
        self.lock = threading.Lock()
        sizes = {} if quiet or not sys.stderr.isatty() else expected_sizes(jobs, wanted)
        self.areas = {job: math.prod(size or (0,)) for job, size in sizes.items()}
        self.done = dict.fromkeys(self.areas, 0.0)
        total = sum(self.areas.values()) / 1e6
        form = "{percentage:3.0f}% |{bar}| {n:.1f} of {total:.1f} megapixels, {remaining} left"
        disable = True if quiet else None
        self.bar = tqdm(total=total, bar_format=form, leave=False, disable=disable)

    def __enter__(self) -> "MegapixelBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def of(self, job: Job) -> Progress:
        """Build what is told of the progress of a job."""
        return lambda done, total: self._set(job, done / total)

    def finish(self, job: Job) -> None:
        """Count a job as done, however it ended."""
        self._set(job, 1.0)

    def say(self, line: object) -> None:
        """Print a line on stderr, above the bar."""
        tqdm.write(show(line), file=sys.stderr)

    def _set(self, job: Job, share: float) -> None:
        with self.lock:
            area = self.areas.get(job, 0) / 1e6
            self.bar.update(area * (share - self.done.get(job, 0.0)))
            self.done[job] = share


def expected_sizes(jobs: list[Job], wanted: Wanted) -> dict[Job, tuple[int, int] | None]:
    """Tell height and width of each result by the picture's header; None if it can't be read."""
    sizes = {}
    for job in jobs:
        size = header_size(job.source)
        with contextlib.suppress(ValueError):  # the job will say it
            sizes[job] = size and result_size(size[0], size[1], wanted)
    return sizes


class Room:
    """Room in memory for so many pixels at once."""

    def __init__(self, pixels: int):
        self.pixels = pixels
        self.held = 0
        self.changed = threading.Condition()

    @contextlib.contextmanager
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
