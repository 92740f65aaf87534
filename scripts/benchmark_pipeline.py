"""Measure how fast training batches are made, by stage, and how many cores a step rate needs.

python scripts/benchmark_pipeline.py --config realsr_x4 --config.data.folders=PHOTOS
"""

import cProfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from typing import Any

import cv2
from absl import app, flags
from ml_collections import ConfigDict

from upsr_jax.data.pipeline import train_batches
from upsr_jax.files.config_files import define_config_flag
from upsr_jax.train.config import check_config

CONFIG = define_config_flag()
IMAGES = flags.DEFINE_integer("images", 400, "Images to measure, or a few more.", lower_bound=1)

STAGES = {  # of the functions that these three call
    "read_or_next": "read, decode",
    "random_crop_and_flip": "crop",
    "crop_pair": "crop",
    "sharpen": "sharpen",
    "random_blur": "blur",
    "resize_by": "resize",
    "resize_to": "resize",
    "random_noise": "noise",
    "random_jpeg": "JPEG",
    "random_sinc": "sinc",
}
CALLERS = ("make_example", "crop_photo", "degrade")
RATES = (50, 100, 200, 500, 1000)  # images a second


def main(_: list[str]) -> None:
    """Measure the pipeline of a config on one core, and then as the config would run it."""
    cv2.setNumThreads(1)  # as training does
    config = CONFIG.value
    check_config(config)
    num_workers, num_threads = config.data.num_workers, config.data.num_threads
    config.data.update(num_workers=0, num_threads=0)
    seconds = seconds_per_image(config, time.process_time)
    print(f"{config.data.crop_size}-pixel crops: {1 / seconds:.1f} images a second per core\n")
    for stage, share in stage_shares(config).items():
        print(f"  {stage:14}{1000 * seconds * share:7.2f} ms{share:6.0%}")
    print(f"  {'in all':14}{1000 * seconds:7.2f} ms\n")
    print("  images a second" + "".join(f"{rate:7}" for rate in RATES))
    print("  cores for them " + "".join(f"{rate * seconds:7.1f}" for rate in RATES) + "\n")
    config.data.update(num_workers=num_workers, num_threads=num_threads)
    rate = 1 / seconds_per_image(config, time.perf_counter)
    how = f"{num_workers} workers" if num_workers else f"{num_threads} threads"
    print(f"here, by {how}: {rate:.1f} images a second")


def seconds_per_image(config: ConfigDict, clock: Callable[[], float]) -> float:
    """Measure the time of an image, once the first batches are there."""
    with closing(train_batches(config.data, config.degradation, config.seed, 0, 0, 1)) as batches:
        for _ in range(3):
            next(batches)
        start, images = clock(), 0
        while images < IMAGES.value:
            images += len(next(batches)["index"])
        return (clock() - start) / images


def stage_shares(config: ConfigDict) -> dict[str, float]:
    """Measure which part of the time each stage takes, the longest first."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(seconds_per_image, config, time.process_time)
    entries = profile.getstats()
    total = sum(entry.inlinetime for entry in entries)
    shares: dict[str, float] = defaultdict(float)
    for entry in entries:
        for call in entry.calls or ():
            if name_of(entry.code) in CALLERS and name_of(call.code) in STAGES:
                shares[STAGES[name_of(call.code)]] += call.totaltime / total
    shares["all else"] = 1 - sum(shares.values())
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def name_of(code: Any) -> str:
    """Return the name of a profiled function; those of C have none."""
    return getattr(code, "co_name", "")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
