"""Tiles of many threads run together, and each thread gets its own back."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from upsr_jax.upscale.batcher import TileBatcher


def tile(value, side=4):
    return np.full((side, side, 3), value, np.float32)


def test_batches_have_one_size_and_shape_whatever_is_there():
    shapes = []

    def run(lr, noise):
        shapes.append((lr.shape, noise.shape))
        return lr + noise

    batcher = TileBatcher(run, 3)
    futures = [batcher.submit(tile(n), tile(100)) for n in range(4)]
    futures += [batcher.submit(tile(n, 8), tile(100, 8)) for n in (4, 5)]
    # The last ones handed in are waited for first: others' tiles run until theirs have.
    for n in reversed(range(6)):
        assert (batcher.wait(futures[n]) == 100 + n).all()
    assert shapes == [((3, 4, 4, 3),) * 2, ((3, 8, 8, 3),) * 2, ((3, 4, 4, 3),) * 2]


def test_threads_share_batches_and_get_their_own_results():
    running, sizes = threading.Event(), []
    all_in = threading.Barrier(9)

    def run(lr, noise):
        if not running.is_set():  # the first batch takes until all others have handed theirs in
            running.set()
            all_in.wait(10)
        sizes.append(len(np.unique(lr)))
        return lr * 2

    batcher = TileBatcher(run, 4)
    first = batcher.submit(tile(0), tile(0))
    with ThreadPoolExecutor(9) as pool:
        results = [pool.submit(batcher.wait, first)]
        assert running.wait(10)

        def use(value):
            future = batcher.submit(tile(value), tile(0))
            all_in.wait(10)
            return batcher.wait(future)

        results += [pool.submit(use, value) for value in range(1, 9)]
        for value, result in enumerate(results):
            assert (result.result(10) == 2 * value).all()
    assert sizes == [1, 4, 4]


def test_an_error_reaches_all_of_its_batch_and_no_other():
    def run(lr, noise):
        if (lr == 7).any():
            raise MemoryError("full")
        return lr

    batcher = TileBatcher(run, 2)
    futures = [batcher.submit(tile(value), tile(0)) for value in (7, 1, 2)]
    for future in futures[:2]:
        with pytest.raises(MemoryError, match="full"):
            batcher.wait(future)
    assert (batcher.wait(futures[2]) == 2).all()


def test_ctrl_c_is_not_lost_in_another_threads_tile():
    def run(lr, noise):
        raise KeyboardInterrupt

    batcher = TileBatcher(run, 1)
    others, mine = (batcher.submit(tile(value), tile(0)) for value in range(2))
    with pytest.raises(KeyboardInterrupt):
        batcher.wait(mine)
    assert others.done() and not mine.done()


def test_a_stop_ends_all_waiting():
    running, stopped = threading.Event(), threading.Event()

    def run(lr, noise):
        running.set()
        assert stopped.wait(10)
        return lr

    batcher = TileBatcher(run, 1)
    futures = [batcher.submit(tile(value), tile(0)) for value in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.wait, futures[0])
        assert running.wait(10)
        second = pool.submit(batcher.wait, futures[1])
        batcher.stop()
        stopped.set()
        assert (first.result(10) == 0).all()  # it was running
        with pytest.raises(CancelledError):
            second.result(10)
