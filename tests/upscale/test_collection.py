"""A collection is found and shared out whole, and only so much of it is in memory."""

import fcntl
import itertools
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from photos import photo, save
from PIL import Image
from PIL.ExifTags import Base
from profiles import DISPLAY_P3, grey_profile, rgb_profile, srgb_of
from stand_in import repeat

from upsr_jax.files import find, whole
from upsr_jax.files.photos import read_image
from upsr_jax.files.write_photo import write_image
from upsr_jax.upscale import collection
from upsr_jax.upscale.collection import (
    Counts,
    Job,
    Room,
    find_sources,
    measure,
    meet_others,
    plan_jobs,
    run_jobs,
    take_share,
)
from upsr_jax.upscale.sizes import Wanted
from upsr_jax.upscale.upscaler import Upscaler

OUT = Path("out")
JOBS = [Job(Path(f"{n}.jpg"), OUT / "folder" / f"{n}.png") for n in range(1000)]


def test_shares_are_disjoint_even_and_whole():
    shares = [take_share(JOBS, OUT, process_id, 3) for process_id in range(3)]
    assert sorted(itertools.chain(*shares)) == sorted(JOBS)
    assert all(280 < len(share) < 390 for share in shares)  # four standard deviations
    assert take_share(JOBS, OUT, 0, 1) == JOBS


def test_a_share_depends_on_names_alone():
    share = take_share(JOBS, OUT, 1, 2)
    other_place = [Job(job.source, Path("/else/o") / job.target.relative_to(OUT)) for job in JOBS]
    found = take_share(other_place[::-3], Path("/else/o"), 1, 2)
    assert {job.source for job in found} == {job.source for job in JOBS[::-3] if job in share}


def test_only_so_many_pixels_are_held():
    room, lock = Room(10), threading.Lock()
    held, sums = [], []

    def use(pixels):
        with room.hold(pixels):
            with lock:
                held.append(pixels)
                sums.append(sum(held))
            time.sleep(0.002)  # so that others would come in
            with lock:
                held.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [3, 4, 5, 1, 6, 7] * 20))
    assert len(sums) == 120
    assert 7 < max(sums) <= 10  # several at once, but no more than there is room for


def test_a_picture_between_two_runs_is_counted(tmp_path):
    job = Job(save(tmp_path / "a.png", photo(6, 8)), tmp_path / "x.png")
    assert measure(job, Wanted(4)) == (48, 32 * 24)
    assert measure(job, Wanted(5)) == (48 * 16, 40 * 30)


def test_results_keep_wide_colours_and_are_grey_if_the_photo_is(tmp_path):
    colour, grey = photo(6, 8, seed=1), np.maximum(photo(6, 8, seed=2)[..., 0], 40)
    expected = {
        "p3": colour,
        "grey": grey,
        "grey_profile": srgb_of(grey[..., None].repeat(3, -1), gamma=1.0)[..., 0],
        "grey_alpha": np.dstack([grey, colour[..., 0]]),
    }
    profile = rgb_profile(DISPLAY_P3)
    save(tmp_path / "p3.tif", colour, icc_profile=profile)
    save(tmp_path / "grey.tif", grey)
    save(tmp_path / "grey_profile.png", grey, icc_profile=grey_profile(1.0))
    save(tmp_path / "grey_alpha.png", expected["grey_alpha"])
    jobs, _ = plan_jobs([tmp_path], tmp_path / "out", "png")
    assert run_jobs(jobs, Upscaler(repeat, {}), 0, False) == Counts(4, 0, 0)
    for name, pixels in expected.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.info.get("icc_profile") == (profile if name == "p3" else None)
            found = np.asarray(image)[::4, ::4]
        assert found.shape == pixels.shape
        found, pixels = (np.atleast_3d(array)[..., :3].astype(float) for array in (found, pixels))
        visible = slice(None) if name != "grey_alpha" else slice(0, 1)
        assert np.abs(found - pixels)[..., visible].max() < 2


def test_room_is_given_back_after_an_error():
    room = Room(10)
    for _ in range(3):
        try:
            with room.hold(8):
                raise ValueError
        except ValueError:
            pass
    assert room.held == 0


def test_links_in_a_circle_are_followed_once(tmp_path):
    picture = save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("../a")
    (tmp_path / "a" / "b").symlink_to("../b")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "back").symlink_to("../a")
    (tmp_path / "b" / "loop.png").symlink_to("loop.png")  # no picture, which is said later
    (tmp_path / "other").symlink_to("a")  # no circle
    pictures, problems = find_sources(tmp_path, Path("out"))
    found = {path.relative_to(tmp_path).as_posix() for path in pictures}
    ways = ["a/1.png", "other/1.png", "b/back/1.png"]
    loops = ["b/loop.png", "a/b/loop.png", "other/b/loop.png", "b/back/b/loop.png"]
    assert found == {*ways, *loops} - {"b/back/b/loop.png"}
    assert not problems
    assert find_sources(tmp_path / "a", Path("out"))[0][0] == picture


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path / "locked" / "1.png")
    listdir = os.listdir

    def refuse(folder):
        if os.path.basename(folder) == "locked":
            raise PermissionError(13, "Permission denied", folder)
        return listdir(folder)

    monkeypatch.setattr(find.os, "listdir", refuse)
    other = save(tmp_path / "open" / "2.png")
    jobs, problems = plan_jobs([tmp_path], tmp_path / "out", "png")
    assert jobs == [Job(other, tmp_path / "out" / "open" / "2.png")]
    assert problems == [f"{tmp_path / 'locked'}: cannot be read (Permission denied)."]


def test_pictures_of_other_formats_are_not_passed_over(tmp_path):
    for name in ("a.JP2", "b/c.jp2", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs, problems = plan_jobs([tmp_path], tmp_path / "out", "png")
    reason = "this format is not read; save it as JPEG or PNG."
    assert not jobs
    assert problems == [f"{tmp_path / name}: {reason}" for name in ("a.JP2", "b/c.jp2")]


def test_folders_in_each_other(tmp_path):
    inner, outer = save(tmp_path / "in" / "a.jpg"), tmp_path
    jobs = [Job(inner, outer / "a.png")]
    assert plan_jobs([inner.parent], outer, "png") == (jobs, [])
    save(outer / "a.png")  # its result: the inner folder is still as it was
    assert plan_jobs([inner.parent], outer, "png") == (jobs, [])
    save(outer / "out" / "x.png")  # which is no picture to upscale
    found, _ = plan_jobs([outer], outer / "out", "png")
    assert [job.source for job in found] == [outer / "a.png", inner]
    (tmp_path / "link").symlink_to("in")
    found, (problem,) = plan_jobs([inner.parent], tmp_path / "link", "png")
    assert not found
    assert "in: its pictures are not upscaled, as the results go there; choose another" in problem


def test_no_result_replaces_another_picture_of_the_command(tmp_path):
    save(tmp_path / "in" / "sub" / "a.jpg")
    other = save(tmp_path / "out" / "sub" / "a.png")
    jobs, (problem,) = plan_jobs([tmp_path / "in", other], tmp_path / "out", "png")
    assert jobs == [Job(other, tmp_path / "out" / "a.png")]
    assert f"in/sub/a.jpg: its result would replace {other}, which is to be" in problem


def plan_of(*inputs: str) -> tuple[dict[str, str], list[str]]:
    jobs, problems = plan_jobs([Path(path) for path in inputs], OUT, "png")
    return {str(job.source): job.target.relative_to(OUT).as_posix() for job in jobs}, problems


def test_two_results_have_two_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d1/a.png", "d2/a.png", "d2/b.JPG", "d2/b.bmp", "x/p/1.jpg", "y/p/1.jpg", "c.png"):
        save(tmp_path / name)
    (tmp_path / "d2" / "b.jpg").write_text("no picture, so it needs no name")
    two = {"d1/a.png": "d1/a.png", "d2/a.png": "d2/a.png"}
    assert plan_of("d1/a.png", "d2/a.png", "c.png") == ({**two, "c.png": "c.png"}, [])
    suffixes = {"d2/b.JPG": "d2/b.JPG.png", "d2/b.bmp": "d2/b.bmp.png"}
    found, (problem,) = plan_of("d1", "d2", "d1/", "d1/a.png")
    assert found == two | suffixes and problem.startswith("d2/b.jpg: not a whole JPEG")
    assert plan_of("x/p", "y/p")[0] == {"x/p/1.jpg": "x/p/1.png", "y/p/1.jpg": "y/p/1.png"}
    assert plan_of("x", "y/p/1.jpg")[0] == {"x/p/1.jpg": "p/1.png", "y/p/1.jpg": "1.png"}


def test_what_can_have_no_name_is_listed_and_the_others_are_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "a.png", "a.jpg.bmp", "b.jpg"):
        save(tmp_path / name)
    found, (problem,) = plan_of(".")
    assert found == {"a.png": "a.png.png", "b.jpg": "b.png"}
    assert problem == "a.jpg and a.jpg.bmp would become out/a.jpg.png; rename one of them."


def test_a_folder_of_results_among_the_inputs_is_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in" / "a.png")
    jobs, _ = plan_jobs([Path("in")], OUT, "png")
    assert run_jobs(jobs, Upscaler(repeat, {}), 0, False) == Counts(1, 0, 0)
    assert plan_of("in", "out", "out/a.png") == ({"in/a.png": "a.png"}, [])
    save(OUT / "mine.png")
    assert plan_of("in", "out")[1][0].startswith("out: its pictures are not upscaled, as the")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_result_cut_short_or_of_another_size_is_not_taken_for_done(tmp_path, capsys, suffix):
    job = Job(save(tmp_path / "a.png", photo(9, 7)), tmp_path / f"b{suffix}")
    upscale = Upscaler(repeat, {})
    assert run_jobs([job], upscale, 0, False) == Counts(1, 0, 0)
    whole = job.target.read_bytes()
    with Image.open(job.target) as image:
        exif = image.info["exif"]
    for damage in (lambda: job.target.write_bytes(whole[:-4]), lambda: save(job.target, exif=exif)):
        damage()
        damaged = job.target.read_bytes()
        assert run_jobs([job], upscale, 0, False) == Counts(0, 0, 1)
        assert "exists already, and not as this command makes it" in capsys.readouterr().err
        assert job.target.read_bytes() == damaged
    assert run_jobs([job], upscale, 0, True) == Counts(1, 0, 0)
    assert job.target.read_bytes() == whole


def test_a_result_that_another_process_writes_meanwhile_is_done(tmp_path, monkeypatch):
    job = Job(save(tmp_path / "a.png"), tmp_path / "b.png")
    write_photo = collection.write_photo

    def write_twice(path, bands, *arguments, **options):
        bands = list(bands)
        write_photo(path, bands, *arguments, **options)
        write_photo(path, bands, *arguments, **options)

    monkeypatch.setattr(collection, "write_photo", write_twice)
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(0, 1, 0)


@pytest.mark.parametrize("other_plan", [False, True])
def test_processes_have_one_plan(other_plan):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    plans = [([Path("a.png")], 0), ([Path("a.png")], int(other_plan))]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(meet_others, address, 2, i, plan) for i, plan in enumerate(plans)]
        if other_plan:
            for call, kind in zip(calls, (ValueError, ConnectionError), strict=True):
                with pytest.raises(kind, match="process 1 has other options or sees other files"):
                    call.result(20)
        else:
            assert [call.result(20) for call in calls] == [(0, 2), (1, 2)]


def test_parts_of_killed_processes_are_cleared_away(tmp_path):
    job = Job(save(tmp_path / "a.png"), tmp_path / "out" / "b" / "a.png")
    job.target.parent.mkdir(parents=True)
    dead, alive = (job.target.parent / f".upsr-{name}.part" for name in ("dead", "alive"))
    dead.touch()
    with alive.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(1, 0, 0)
    assert sorted(os.listdir(job.target.parent)) == [alive.name, "a.png"]


def test_a_result_that_is_being_written_is_locked(tmp_path, monkeypatch):
    def look(descriptor):
        (part,) = tmp_path.glob(".upsr-*.part")
        with part.open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(whole.os, "fsync", look)
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_results_that_pillow_finds_too_large_are_known_again(tmp_path, monkeypatch, suffix):
    job = Job(save(tmp_path / "a.png"), tmp_path / f"b{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of the result's 1,024
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(1, 0, 0)
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(0, 1, 0)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_no_picture_is_decoded_before_there_is_room(tmp_path, monkeypatch):
    jobs = [Job(save(tmp_path / f"{n}.png"), tmp_path / "out" / f"{n}.png") for n in range(8)]
    read_photo, write_photo = collection.read_photo, collection.write_photo
    decoded, most = [], []

    def read(path):
        decoded.append(path)
        most.append(len(decoded))
        time.sleep(0.02)  # so that the others could overtake
        return read_photo(path)

    def write(path, *arguments, **options):
        write_photo(path, *arguments, **options)
        decoded.pop()

    monkeypatch.setattr(collection, "MAX_PIXELS", 64)
    monkeypatch.setattr(collection, "read_photo", read)
    monkeypatch.setattr(collection, "write_photo", write)
    assert run_jobs(jobs, Upscaler(repeat, {}, batch=8), 0, False) == Counts(8, 0, 0)
    assert max(most) == 1


def test_what_a_photo_says_of_itself_is_kept_and_the_result_known_again(tmp_path):
    exif = Image.Exif()
    exif.update({Base.Model: "Camera", Base.Software: "phone 1.0", Base.Orientation: 3})
    job = Job(save(tmp_path / "a.jpg", exif=exif), tmp_path / "out" / "a.png")
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(1, 0, 0)
    with Image.open(job.target) as image:
        found = image.getexif()
    assert found[Base.Model] == "Camera" and found[Base.Software].startswith("upsr_jax ")
    assert Base.Orientation not in found
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(0, 1, 0)


def test_an_empty_file_is_no_result(tmp_path):
    job = Job(save(tmp_path / "a.png"), tmp_path / "out" / "a.png")
    job.target.parent.mkdir()
    job.target.touch()  # as a kill leaves it on a file system without hard links
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(1, 0, 0)
    assert read_image(job.target).shape == (32, 32, 3)


def test_a_picture_that_changes_meanwhile_is_not_taken_for_done(tmp_path, monkeypatch, capsys):
    job = Job(save(tmp_path / "a.png"), tmp_path / "out" / "a.png")
    read_photo = collection.read_photo

    def read_then_change(path):
        before = read_photo(path)
        save(path, photo(9, 9))
        return before

    monkeypatch.setattr(collection, "read_photo", read_then_change)
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(1, 0, 0)
    assert run_jobs([job], Upscaler(repeat, {}), 0, False) == Counts(0, 0, 1)
    assert "a.png exists already, and not as this command makes it" in capsys.readouterr().err


def test_a_picture_that_vanishes_meanwhile_ends_no_other(tmp_path, monkeypatch, capsys):
    jobs = [Job(save(tmp_path / f"{n}.png"), tmp_path / "out" / f"{n}.png") for n in range(3)]
    read_size = collection.read_size

    def read_then_remove(path):
        size = read_size(path)
        if path == jobs[1].source:
            path.unlink()
        return size

    monkeypatch.setattr(collection, "read_size", read_then_remove)
    assert run_jobs(jobs, Upscaler(repeat, {}), 0, False) == Counts(2, 0, 1)
    assert capsys.readouterr().err.startswith(f"{jobs[1].source}: ")
