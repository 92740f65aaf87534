"""Compare what degradation on a device makes of photographs with what a host makes of them.

    python scripts/compare_degradations.py --config released_x4 --images 2000

Crops of the packaged photographs, other ones for either, are degraded as the config says; JPEG on
the device is simulated in any case. Each number is compared by a two-sample Kolmogorov-Smirnov
test; its p is multiplied by how many numbers there are (Bonferroni).
"""

from pathlib import Path

import cv2
import numpy as np
from absl import app, flags
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from scipy.stats import ks_2samp

import upsr_jax
from upsr_jax.cluster.compiler import use_safe_compiler
from upsr_jax.data.degradation.host import degrade
from upsr_jax.data.examples import random_crop_and_flip
from upsr_jax.data.sources import open_source
from upsr_jax.files.config_files import define_config_flag
from upsr_jax.train.config import check_config
from upsr_jax.train.degradation import create_degrade
from upsr_jax.train.sharding import create_mesh, to_global

BATCH = 50

Images = UInt8[np.ndarray, "b h w 3"]


def main(config: ConfigDict, count: int) -> None:
    """Degrade `count` crops either way, and print a table of medians and p."""
    use_safe_compiler()
    cv2.setNumThreads(1)
    check_config(config)
    host = measure(*degrade_on_host(config, count))
    device = measure(*degrade_on_device(config, count))
    print(f"{'':18}{'host':>10}{'device':>10}{'p':>10}")
    for name, p in compare(host, device).items():
        print(f"{name:18}{np.median(host[name]):10.3f}{np.median(device[name]):10.3f}{p:10.3f}")


def degrade_on_host(config: ConfigDict, count: int) -> tuple[Images, Images]:
    """Return crops and what `host.degrade` makes of them."""
    hr = random_crops(0, count, config.data.crop_size)
    settings = config.degradation.to_dict()
    lr = [degrade(np.random.default_rng((0, i)), crop, **settings) for i, crop in enumerate(hr)]
    return hr, np.stack(lr)


def degrade_on_device(config: ConfigDict, count: int) -> tuple[Images, Images]:
    """Return other crops and what training with `data.degrade_on` = "device" makes of them."""
    hr = random_crops(1, count, config.data.crop_size)
    mesh = create_mesh(-1, 1)
    degrade_fn = create_degrade(config, mesh)
    lr = []
    for start in range(0, count, BATCH):
        rows = np.arange(start, start + BATCH)
        place = np.stack([rows, 0 * rows], axis=1).astype(np.int32)  # nothing is shared
        batch = {"hr": hr[rows % count], "place": place}  # always of the same shape
        lr.append(np.asarray(degrade_fn(to_global(batch, mesh))["lr"]))
    signed = np.concatenate(lr)[:count]
    return hr, np.rint((signed + 1) * 127.5).astype(np.uint8)


def random_crops(seed: int, count: int, size: int) -> Images:
    """Crop the packaged photographs at random."""
    source = open_source(str(Path(upsr_jax.__file__).parent / "assets" / "photos"))
    photos = [source.read(i) for i in range(source.size)]
    rng = np.random.default_rng(seed)
    return np.stack(
        [random_crop_and_flip(rng, photos[i], size) for i in rng.integers(source.size, size=count)]
    )


def measure(hr: Images, lr: Images) -> dict[str, np.ndarray]:
    """Measure images in five ways, a number an image."""
    rows = [measure_one(*pair) for pair in zip(hr, lr, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def measure_one(hr: UInt8[np.ndarray, "H W 3"], lr: UInt8[np.ndarray, "h w 3"]) -> dict[str, float]:
    """Measure what was done to one image."""
    height, width = lr.shape[:2]
    bicubic = np.asarray(Image.fromarray(hr).resize((width, height), Image.Resampling.BICUBIC))
    error = np.square(lr.astype(float) - bicubic).mean()
    y, *chroma = np.moveaxis(cv2.cvtColor(lr, cv2.COLOR_RGB2YCrCb).astype(float), -1, 0)
    steps = [np.abs(np.diff(y, axis=axis)).mean(1 - axis) for axis in (0, 1)]
    at_edge = np.arange(1, height) % 8 == 0  # of blocks
    laplacian = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)  # doi 10.1006/cviu.1996.0060
    residual = cv2.filter2D(y, -1, laplacian)[1:-1, 1:-1]
    gradient = np.sqrt(sum(np.square(np.diff(y, axis=axis)).mean() for axis in (0, 1)))
    inner = np.mean([step[~at_edge].mean() for step in steps])
    numbers = {
        "PSNR to bicubic": 10 * np.log10(255**2 / max(error, 1e-3)),
        "noise level": np.sqrt(np.pi / 2) * np.abs(residual).mean() / 6,
        "blur width": y.std() / max(gradient, 1e-3),
        "blockiness": np.mean([step[at_edge].mean() for step in steps]) / max(inner, 1e-3),
        "chroma": np.mean([plane.std() for plane in chroma]),
    }
    return {name: float(number) for name, number in numbers.items()}


def compare(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Test whether either has the same distribution: p, at most 1, for each number."""
    return {name: min(len(one) * ks_2samp(one[name], other[name]).pvalue, 1.0) for name in one}


if __name__ == "__main__":
    # Here, not above: a test imports this file beside `upsr_jax.main`, which has a --config too.
    chosen = define_config_flag()
    images = flags.DEFINE_integer("images", 2000, "Crops for either.", lower_bound=2)
    flags.mark_flag_as_required("config")
    app.run(lambda _: main(chosen.value, images.value))
