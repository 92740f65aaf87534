"""Evaluation measures every pair as a loop in NumPy does, and says what it did."""

import json
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from photos import draw_photo, write_photos
from scipy.signal import convolve2d
from tiny_model import random_params

from configs import tiny
from upsr_jax import evaluate as evaluate_module
from upsr_jax.checkpoint import save_model
from upsr_jax.evaluate import centre_crop, evaluate, load_pairs
from upsr_jax.inference import Restoration
from upsr_jax.models.lpips import LPIPS
from upsr_jax.networks import apply
from upsr_jax.pretrained import load_lpips_vgg
from upsr_jax.tiling import noise_window

SIZES = {"a/x": (20, 24), "b/x": (16, 16)}  # of the low-resolution images; two share a file name
SEED = 3


def enlarge(image):
    return image.repeat(4, axis=-3).repeat(4, axis=-2)


def make_noisy_resize(config: ConfigDict):
    """Stand in for the networks: repeat pixels, add noise, darken the other images."""

    def restore(params, lr, noise):
        big = enlarge(lr)
        return Restoration(jnp.clip(big + 0.2 * noise, -1, 1), big * 0.9, big * 0.8, noise)

    return restore


def luma(image):
    return image @ [65.481, 128.553, 24.966] + 16


def psnr_y(image, hr):
    return -10 * np.log10(np.mean((luma(image) - luma(hr)) ** 2) / 255**2 + 1e-8)


def ssim_y(image, hr):
    x, y = np.round(luma(image)), np.round(luma(hr))
    window = np.outer(*[np.exp(-(np.arange(-5, 6) ** 2) / 4.5)] * 2)
    x_mean, y_mean, xx, yy, xy = (
        convolve2d(z, window / window.sum(), "valid") for z in (x, y, x * x, y * y, x * y)
    )
    luminance = (2 * x_mean * y_mean + 6.5025) / (x_mean**2 + y_mean**2 + 6.5025)
    structure = (2 * (xy - x_mean * y_mean) + 58.5225) / (xx - x_mean**2 + yy - y_mean**2 + 58.5225)
    return np.mean(luminance * np.maximum(structure, 0))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ConfigDict:
    """Two pairs of different sizes and a model that fits the config."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        for kind, scale in (("gt", 4), ("lq", 1)):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), draw_photo(seed, scale * height, scale * width)[..., ::-1])
    config = tiny.get_config()
    model = str(folder / "model")
    config.eval.update(
        model=model, gt=str(folder / "gt"), lr=str(folder / "lq"), seed=SEED, pictures=2
    )
    save_model(model, config, random_params(config))
    return config.lock()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def evaluated(config, workdir):
    """The report of an evaluation; its files are in workdir."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "make_super_resolve", make_noisy_resize)
        return evaluate(config, workdir)


def test_every_pair_is_measured(config, evaluated):
    lpips = load_lpips_vgg()
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        lr, hr = (
            cv2.imread(f"{folder}/{name}.png")[..., ::-1] / 255
            for folder in (config.eval.lr, config.eval.gt)
        )
        noise = noise_window(SEED + number, 0, 0, 256, 256)[: 4 * height, : 4 * width]
        results = {
            "": (np.clip(enlarge(2 * lr - 1) + 0.2 * noise, -1, 1) + 1) / 2,
            "bicubic_": (enlarge(2 * lr - 1) * 0.9 + 1) / 2,
        }
        for prefix, image in results.items():
            row = evaluated.rows[name]
            assert row[f"{prefix}psnr_y"] == pytest.approx(psnr_y(image, hr), abs=1e-3)
            assert row[f"{prefix}ssim_y"] == pytest.approx(ssim_y(image, hr), abs=1e-3)
            signed = [jnp.asarray(x[None] * 2 - 1, jnp.float32) for x in (image, hr)]
            distance = float(apply(LPIPS(), lpips, *signed)[0])
            assert row[f"{prefix}lpips_vgg"] == pytest.approx(distance, abs=1e-4)


def test_means_are_those_of_the_images(evaluated):
    assert list(evaluated.rows) == list(SIZES)
    first, second = evaluated.rows.values()
    for metric, mean in evaluated.means.items():
        assert mean == pytest.approx((first[metric] + second[metric]) / 2)


def test_results_and_protocol_are_written(config, workdir, evaluated):
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    assert results["means"] == evaluated.means
    assert results["images"] == evaluated.rows
    protocol = results["protocol"]
    assert (protocol["images"], protocol["seed"]) == (2, SEED)
    assert protocol["ground truth"] == config.eval.gt
    assert protocol["sampler"] == "ddim, 5 steps"
    assert "BT.601" in protocol["colours"]


def test_the_table_is_printed(config, workdir, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_module, "make_super_resolve", make_noisy_resize)
    report = evaluate(config, workdir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split() == ["PSNR-Y", "SSIM-Y", "LPIPS-VGG"]
    for line, prefix, label in ((lines[-2], "bicubic_", "bicubic"), (lines[-1], "", "this model")):
        assert line.startswith(label)
        psnr, ssim, lpips = line.removeprefix(label).split()
        assert psnr == f"{report.means[prefix + 'psnr_y']:.3f}"
        assert ssim == f"{report.means[prefix + 'ssim_y']:.4f}"
        assert lpips == f"{report.means[prefix + 'lpips_vgg']:.4f}"
    assert "seed: 3" in lines


def test_pictures_show_all_images_side_by_side(config, workdir, evaluated):
    picture = cv2.imread(str(workdir / "evaluation" / "pictures.png"))[..., ::-1]
    np.testing.assert_array_equal(picture, evaluated.picture)
    assert picture.shape == (80 + 64, 6 * 96, 3)
    lr, hr = (
        cv2.imread(f"{folder}/a/x.png")[..., ::-1] for folder in (config.eval.lr, config.eval.gt)
    )
    panels = np.split(picture[:80], 6, axis=1)
    np.testing.assert_array_equal(panels[0], enlarge(lr))
    np.testing.assert_allclose(panels[1], (enlarge(lr) - 127.5) * 0.9 + 127.5, atol=0.51)
    np.testing.assert_allclose(panels[2], (enlarge(lr) - 127.5) * 0.8 + 127.5, atol=0.51)
    np.testing.assert_array_equal(panels[5], hr)
    assert (picture[80:, 6 * 64 :] == 255).all()


def test_a_run_without_a_model_says_so(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.eval.model = ""
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints: give the --workdir of"):
        evaluate(config, tmp_path)


def test_centre_crop():
    image = np.arange(11 * 16 * 3, dtype=np.uint8).reshape(11, 16, 3)
    np.testing.assert_array_equal(centre_crop(image, 4), image[3:7, 6:10])
    np.testing.assert_array_equal(centre_crop(image, 256), image[1:9, 4:12])


def degraded(config: ConfigDict, gt: Path, **changes: int) -> list:
    config = config.copy_and_resolve_references()
    config.eval.update(gt=str(gt), lr="", crop_size=64, **changes)
    return load_pairs(config)


def test_degraded_pairs_are_the_same_each_time(config, tmp_path):
    photos = write_photos(tmp_path / "photos", 3)
    pairs = degraded(config, photos)
    assert [name for name, _ in pairs] == ["0.png", "1.png", "2.png"]
    for i, (_, pair) in enumerate(pairs):
        np.testing.assert_array_equal(pair.hr, draw_photo(i, 80, 100)[8:72, 18:82])
        assert (pair.lr.shape, pair.lr.dtype) == ((16, 16, 3), np.uint8)
    for again, first in zip(degraded(config, photos, max_images=2), pairs, strict=False):
        np.testing.assert_array_equal(again.pair.lr, first.pair.lr)
    others = degraded(config, photos, seed=SEED + 1)
    assert not np.array_equal(others[0].pair.lr, pairs[0].pair.lr)


def test_sharpened_ground_truth_is_refused(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.degradation.use_sharp = True
    config.eval.update(gt=str(tmp_path), lr="")
    with pytest.raises(ValueError, match="set use_sharp to False"):
        load_pairs(config)
