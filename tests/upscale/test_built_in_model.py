"""The packaged weights must do what the README says: a damaged or untrained file fails here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lite_x4
from configs.degradations import imagenet_test, real_esrgan
from upsr_jax import Upscaler
from upsr_jax.files.photos import read_image
from upsr_jax.train.loop import create_evaluators
from upsr_jax.train.sharding import create_mesh, make_gather_fn
from upsr_jax.upscale.restore import make_super_resolve
from upsr_jax.upscale.upscaler import BUILT_IN_MODEL
from upsr_jax.weights.model_folder import load_model

PHOTOS = Path(__file__).parents[2] / "upsr_jax" / "assets" / "photos"


def test_it_is_small():
    _, params = load_model(BUILT_IN_MODEL)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 8_000_000
    assert sum(file.stat().st_size for file in BUILT_IN_MODEL.iterdir()) <= 16_000_000


@pytest.mark.parametrize(
    ("degradation", "lpips", "psnr", "ssim"),
    [(real_esrgan, 0.09, 0.0, 0.01), (imagenet_test, 0.08, 0.1, 0.01)],
)
def test_it_is_closer_to_the_truth_than_bicubic_on_packaged_photos(degradation, lpips, psnr, ssim):
    """Degraded heavily and mildly, by what it gained at least when it was trained."""
    config = lite_x4.get_config()
    config.degradation = degradation()
    config.eval.update(gt=str(PHOTOS), lr="")
    stored, params = load_model(BUILT_IN_MODEL)
    config.diffusion.update(stored.diffusion)
    evaluator = create_evaluators(config, make_gather_fn(create_mesh(-1, 1)))[0][""]
    report = evaluator(params, lambda: False)
    assert report
    means = report.means
    assert means["lpips_vgg"] < means["bicubic_lpips_vgg"] - lpips
    assert means["psnr_y"] > means["bicubic_psnr_y"] + psnr
    assert means["ssim_y"] > means["bicubic_ssim_y"] + ssim


def grids(image: np.ndarray) -> dict[int, float]:
    """Give the rms of what repeats every 2, 4 and 8 pixels, of a channel at most; sides are 8n."""
    rows, columns = (side // 8 for side in image.shape[:2])
    block = image.reshape(rows, 8, columns, 8, 3).mean((0, 2))
    power = np.abs(np.fft.fft2(block, axes=(0, 1)) / 64) ** 2
    period = 8 // np.gcd(np.gcd.outer(np.arange(8), np.arange(8)), 8)
    return {p: float(np.sqrt(power[period == p].sum(0).max())) for p in (2, 4, 8)}


def test_plain_and_smooth_pictures_get_no_grid():
    """In 255ths, before rounding; of the estimate and of the result apart."""
    rows, columns = np.mgrid[:64, :64] / 64
    colours = [(0, 0, 0), (40, 40, 40), (128, 128, 128), (220, 220, 220), (255, 255, 255)]
    colours += [(60, 40, 25), (200, 60, 50), (50, 120, 60), (60, 90, 180), (230, 190, 160)]
    images = [np.broadcast_to(np.array(colour) / 127.5 - 1, (64, 64, 3)) for colour in colours]
    images.append(np.stack([columns - 0.5, 0.8 * rows - 0.4, 0.3 - 0.6 * columns], -1))
    waves = [np.sin(2 * np.pi * (columns + k / 3)) * np.cos(2 * np.pi * rows) for k in range(3)]
    images.append(0.6 * np.stack(waves, -1))
    lr = jnp.asarray(np.stack(images), jnp.float32)
    config, params = load_model(BUILT_IN_MODEL)
    noise = jax.random.normal(jax.random.key(0), (len(lr), 256, 256, 3))
    restored = jax.jit(make_super_resolve(config))(params, lr, noise)
    inside = slice(32, -32)  # where the border is not seen
    for name in ("estimate", "image"):
        off = np.asarray(getattr(restored, name) - restored.bicubic, np.float64) * 127.5
        found = [grids(image[inside, inside]) for image in off]
        assert max(grid[8] for grid in found) < 0.1
        assert max(max(grid[2], grid[4]) for grid in found) < 0.35, found


def test_tiles_show_no_seam_and_no_colour_shift():
    photo = read_image(PHOTOS / "flower.jpg")[:150, :170]
    whole = Upscaler.from_pretrained(tile=192)(photo).astype(float)
    tiled = Upscaler.from_pretrained(tile=64)(photo).astype(float)
    assert np.abs(whole.mean((0, 1)) - photo.mean((0, 1))).max() < 0.5
    # A seam would stand out of the differences between neighbouring rows and columns. The last
    # pixels are left out: whole, the picture is padded there, and in tiles it ends.
    for axis in (0, 1):
        whole_steps, steps = (
            np.abs(np.diff(x, axis=axis)).mean((1 - axis, 2))[:-32] for x in (whole, tiled)
        )
        assert (steps - whole_steps).max() < 0.5
