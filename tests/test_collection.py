"""A collection is shared out whole, and only so much of it is in memory."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from upsr_jax.collection import Job, Room, take_share

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
    held, most = [], []

    def use(pixels):
        with room.hold(pixels):
            with lock:
                held.append(pixels)
                most.append(list(held))
            with lock:
                held.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [3, 4, 5, 1, 10, 7] * 30))
    assert len(most) == 180
    assert max(map(sum, most)) <= 10


def test_room_is_given_back_after_an_error():
    room = Room(10)
    for _ in range(3):
        try:
            with room.hold(8):
                raise ValueError
        except ValueError:
            pass
    assert room.held == 0
