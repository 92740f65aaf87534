"""A function computed ahead of its use, in threads or in worker processes.

Not by grain (tried: 0.2.18, MapDataset, its threads and mp_prefetch): its workers outlive a killed
trainer, and a signal to all processes of a job, as from SLURM, ends them before the last step.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2

from upsr_jax.files.ahead import run_ahead

A = TypeVar("A")
B = TypeVar("B")

_function: Callable[[Any], Any]  # of a worker process


def map_ahead(
    function: Callable[[A], B], items: Iterable[A], num_workers: int, num_threads: int, ahead: int
) -> Generator[B, None, None]:
    """Yield function(item) of every item, in their order, with up to `ahead` of them begun.

    They are computed in `num_workers` processes, for which the function is pickled; or without
    these in `num_threads` threads; or without either when they are asked for. Closing the generator
    ends them all. Raises what the function raises, and ChildProcessError for a killed process.
    """
    if num_workers:
        # Spawned, since JAX's threads don't survive a fork
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(num_workers, context, _start_worker, (function,))
        function = _call
    elif num_threads:
        executor = ThreadPoolExecutor(num_threads)
    else:
        yield from map(function, items)
        return
    try:
        yield from run_ahead(executor, function, items, ahead)
    except BrokenProcessPool as error:
        for worker in multiprocessing.active_children():
            worker.kill()  # the executor would ask them to end, and wait
        raise ChildProcessError(
            f"One of {num_workers} data workers was killed, perhaps for want of memory: try fewer "
            "of them (config.data.num_workers)."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    # A job's signals reach all its processes; the trainer still needs examples for its last step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata in photos
    cv2.setNumThreads(1)


def _call(item: Any) -> Any:
    return _function(item)


def _exit_with_parent() -> None:
    """End this process when its parent has ended, in whatever way: by itself it would wait on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
