"""Any image comes out four times as large, the same whether it ran whole or in tiles."""

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from photos import draw_photo, enlarge, photo
from PIL import Image
from stand_in import repeat, restoration
from tiny_model import save_tiny_model

from configs import tiny
from upsr_jax import Upscaler
from upsr_jax.models.config import ModelConfig
from upsr_jax.ops import bicubic_upsample
from upsr_jax.upscale.restore import Restoration
from upsr_jax.upscale.sizes import Wanted, result_size
from upsr_jax.upscale.tiles import noise_window
from upsr_jax.upscale.upscaler import _as_pixels, check_seed
from upsr_jax.weights.model_folder import load_model, save_model


def repeat_with_noise(params, lr, noise):
    return restoration(np.clip(repeat(params, lr, noise).image + 0.3 * noise, -1, 1))


@jax.jit
def bicubic(params, lr, noise):
    return restoration(jnp.clip(bicubic_upsample(lr), -1, 1))


SIZES = [(1, 1), (3, 200), (64, 64), (65, 1), (100, 150), (200, 131)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_local_model_leaves_no_trace_of_padding_and_tiles(size, batch):
    image = photo(*size)
    result = Upscaler(repeat, {}, tile=64, batch=batch)(image)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, enlarge(image))


@pytest.mark.parametrize("size", [(20, 30), (100, 150)])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_grey_stays_grey(size, channels):
    """As bright as what the model gives: the weights are those of luma, ITU-R BT.601."""

    def tint(params, lr, noise):
        return restoration(repeat(params, lr, noise).image * np.array((0.5, 0.9, 0.2), np.float32))

    grey = np.maximum(photo(*size)[..., :1], 1).repeat(channels, axis=-1)  # nothing is hidden
    result = Upscaler(tint, {}, tile=64)(grey[..., 0] if channels == 2 else grey)
    assert result.shape[-1] == max(channels, 3)
    bright = (enlarge(grey[..., :1]) / 127.5 - 1) * (0.299 * 0.5 + 0.587 * 0.9 + 0.114 * 0.2)
    assert np.abs(result[..., :3] - (bright + 1) * 127.5).max() <= 0.501  # rounding
    assert (result[..., :3] == result[..., :1]).all()
    grey[-1, -1, 0] ^= 1  # and now it has a colour
    if channels > 2:
        assert (Upscaler(tint, {}, tile=64)(grey)[..., 1] != result[..., 1]).any()


@pytest.mark.parametrize(("tile", "batch"), [(256, 1), (128, 4), (64, 3)])
def test_tiles_see_one_field_of_noise(tile, batch):
    image = photo(100, 150)
    result = Upscaler(repeat_with_noise, {}, tile, batch)(image, seed=7)
    noise = noise_window(7, 0, 0, 400, 600)
    expected = np.clip(enlarge(image).astype(np.float32) / 127.5 - 1 + 0.3 * noise, -1, 1)
    assert np.abs(result - (expected + 1) * 127.5).max() <= 0.501  # rounding


def test_a_model_that_looks_around_shows_no_seam():
    image = photo(150, 200)
    whole = Upscaler(bicubic, {}, tile=256)(image).astype(int)
    tiled = Upscaler(bicubic, {}, tile=64)(image)
    # At a tile's edge two pixels of context are missing, where its weight is nearly nothing.
    # At the right and bottom edges of the image, only the smaller one has been padded.
    difference = np.abs(tiled - whole)[:-8, :-8]
    assert difference.max() <= 6
    assert difference.mean() < 0.05


def test_the_device_sees_one_shape_however_large_the_image():
    shapes = set()

    def record(params, lr, noise):
        shapes.add((lr.shape, noise.shape))
        return repeat(params, lr, noise)

    upscaler = Upscaler(record, {}, tile=64, batch=4)
    for size in [(65, 65), (150, 131), (300, 64)]:
        upscaler(photo(*size))
    assert shapes == {((4, 64, 64, 3), (4, 256, 256, 3))}


@pytest.mark.parametrize(("blend", "side"), [("feather", 192), ("mean", 256)])
def test_tiles_fit_the_image_except_in_the_released_test(blend, side):
    shapes = set()

    def record(params, lr, noise):
        shapes.add(lr.shape)
        return repeat(params, lr, noise)

    Upscaler(record, {}, blend=blend)(photo(320, 300))
    assert shapes == {(1, side, side, 3)}


def test_pictures_from_several_threads_share_batches_and_come_out_as_alone():
    sizes, images = [], [photo(20 + n, 60, seed=n) for n in range(6)] + [photo(150, 131)]
    started, all_in = threading.Event(), threading.Event()

    def record(params, lr, noise):
        if not started.is_set():  # the first batch takes until the others have handed theirs in
            started.set()
            assert all_in.wait(10)
        sizes.append(len(np.unique(lr.reshape(len(lr), -1), axis=0)))
        return repeat_with_noise(params, lr, noise)

    upscaler = Upscaler(record, {}, tile=64, batch=4)
    pending = upscaler._batcher.pending
    with ThreadPoolExecutor(7) as pool:
        futures = [pool.submit(upscaler, image, 5) for image in images[:1]]
        assert started.wait(10)
        futures += [pool.submit(upscaler, image, 5) for image in images[1:]]
        while sum(map(len, pending.values())) < 5 + 4:
            time.sleep(0.01)
        all_in.set()
        results = [future.result(60) for future in futures]
    assert sizes[:3] == [1, 4, 4]
    for image, result in zip(images, results, strict=True):
        alone = Upscaler(repeat_with_noise, {}, tile=64)(image, 5)
        np.testing.assert_array_equal(result, alone)


def test_nan_is_reported_with_the_tile():
    def break_second_row(params, lr, noise):
        return restoration(np.where(lr[:, :1, :1] > 0.9, np.nan, repeat(params, lr, noise).image))

    image = np.zeros((96, 96, 3), np.uint8)
    image[32, 0] = 255  # the corner of the second row's first tile
    with pytest.raises(FloatingPointError, match="NaN or infinity in the tile at row 32, column 0"):
        Upscaler(break_second_row, {}, tile=64)(image)


def test_a_full_device_is_reported_with_the_cure():
    def exhaust(params, lr, noise):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    with pytest.raises(MemoryError, match=r"1 tiles of 128x64 do not fit .* use smaller tiles"):
        Upscaler(exhaust, {})(photo(64, 100))


def test_other_failures_of_the_device_are_not_hidden():
    def fail(params, lr, noise):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        Upscaler(fail, {})(photo(64, 64))


def test_grey_arrays_and_pil_images_are_taken():
    upscaler = Upscaler(repeat, {})
    image = photo(5, 7)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(upscaler(image[..., 0]), enlarge(grey))
    np.testing.assert_array_equal(upscaler(Image.fromarray(image)), enlarge(image))
    np.testing.assert_array_equal(upscaler(Image.fromarray(image[..., 0])), enlarge(grey))


def test_photos_are_taken_by_path_and_by_bytes(tmp_path):
    Image.fromarray(photo(5, 7)).save(tmp_path / "a.png")
    upscaler = Upscaler(repeat, {})
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        np.testing.assert_array_equal(upscaler(image), enlarge(photo(5, 7)))


@pytest.mark.parametrize(
    ("image", "match"),
    [("missing.png", "missing.png: no such file"), (b"text", "image: not a whole JPEG, PNG")],
)
def test_what_is_no_photo_is_refused(image, match):
    with pytest.raises(ValueError, match=match):
        Upscaler(repeat, {})(image)


@pytest.mark.parametrize("image", [None, [[1, 2], [3, 4]], 3])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match=f"the image is a {type(image).__name__}, but must be"):
        _as_pixels(image)


@pytest.mark.parametrize("seed", [None, 1.5, -1, 2**64, True, "1"])
def test_a_seed_that_can_not_be_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed is .*, but must be a whole number in 0\.\."):
        check_seed(seed)


def test_seeds_are_checked_with_every_picture():
    with pytest.raises(ValueError, match="seed is -1, but"):
        Upscaler(repeat, {})(np.zeros((8, 8, 3), np.uint8), seed=-1)
    for seed in (2**64 - 1, np.uint64(3)):
        check_seed(seed)


def run_plainly(function, mesh):
    """Stand in for `split_rows`, without compiling anything."""
    return lambda params, tiles: repeat(params, *tiles)


def test_an_upscaler_is_pickled_with_its_weights_and_settings():
    config, params = ModelConfig.of(tiny.get_config()), {"estimator": {"kernel": np.arange(3.0)}}
    made = Upscaler.from_params(config, params, "name", 0.5, 2, run_plainly, tile=64, overlap=8)
    other = dataclasses.replace(made, params={"estimator": {"kernel": np.arange(4.0)}})
    for upscaler in (made, other):
        again = pickle.loads(pickle.dumps(upscaler))
        np.testing.assert_array_equal(again(photo(100, 70)), enlarge(photo(100, 70)))
        fields = ("tile", "batch", "recipe", "overlap", "blend", "parts")
        for name in fields:
            assert getattr(again, name) == getattr(upscaler, name)
        for one, two in zip(*map(jax.tree.leaves, (again.params, upscaler.params)), strict=True):
            np.testing.assert_array_equal(one, two)
    by_hand = pickle.loads(pickle.dumps(Upscaler(repeat, {}, 64, 3, {"a": 1})))
    assert (by_hand.tile, by_hand.batch, by_hand.recipe) == (64, 3, {"a": 1})


def test_a_forked_process_is_told_instead_of_hanging(monkeypatch):
    upscaler = Upscaler(repeat, {})
    upscaler(photo(5, 7))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match=r"can't run in a forked process, .*'spawn'"):
        upscaler(photo(5, 7))
    with pytest.raises(RuntimeError, match="can't run in a forked process"):
        Upscaler.from_pretrained()


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((5, 5, 2), np.uint8), r"must be \[h, w\], \[h, w, 3\] or"),
        (np.zeros((1, 5, 5, 3), np.uint8), r"must be \[h, w\]"),
        (np.zeros((0, 5, 3), np.uint8), r"must be \[h, w\]"),
        (np.zeros((5, 5, 3), np.int32), "int32, but must be uint8, uint16, or floats"),
        (np.full((5, 5, 3), 1.5), r"values out of 0\.\.1"),
        (np.full((5, 5, 3), np.nan, np.float32), r"values out of 0\.\.1"),
    ],
)
def test_other_arrays_are_refused(image, match):
    with pytest.raises(ValueError, match=match):
        Upscaler(repeat, {})(image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [3, 4])
def test_what_comes_out_is_of_the_type_that_went_in(dtype, channels):
    image = np.random.default_rng(0).integers(999, 65536, (70, 90, channels)).astype(np.uint16)
    if dtype != np.uint16:
        image = (image / 65535 * (255 if dtype == np.uint8 else 1)).astype(dtype)
    result = Upscaler(repeat, {}, tile=64)(image)
    assert result.dtype == (dtype if np.issubdtype(dtype, np.integer) else np.float32)
    difference = result[..., :3].astype(np.float64) - enlarge(image[..., :3])
    # 16 bits go through the network in float32
    assert np.abs(difference).max() <= (1 if np.issubdtype(dtype, np.integer) else 1e-6)


@pytest.mark.parametrize("tile", [64, 256])
@pytest.mark.parametrize("scale", [1, 1.7, 2, 3.99, 4, 5, 16])
def test_results_have_any_scale(scale, tile):
    """In tiles or not, they are what Pillow makes of the whole four or sixteen times as large."""
    image = draw_photo(0, 70, 50)
    result = Upscaler(repeat, {}, tile=tile)(image, scale=scale)
    whole = enlarge(image) if scale <= 4 else enlarge(enlarge(image))
    size = round(scale * 50), round(scale * 70)
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.LANCZOS))
        for channel in np.ascontiguousarray(np.moveaxis(whole.astype(np.float32), -1, 0))
    ]
    expected = np.clip(np.stack(channels, axis=-1), 0, 255)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 0.501  # rounding


@pytest.mark.parametrize("scale", [0.5, 17, float("nan")])
def test_a_scale_that_can_not_be_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale is .*, but must lie in 1\.\.16"):
        Upscaler(repeat, {})(photo(5, 5), scale=scale)


def test_above_four_times_a_photo_is_no_larger_than_memory_holds():
    """Between two runs of the model its result, sixteen times the photo's pixels, is held."""
    assert result_size(4096, 4096, Wanted(4.5)) == (18432, 18432)
    assert result_size(10000, 13000, Wanted(4)) == (40000, 52000)
    assert result_size(10000, 13000, Wanted(16, max_side=52000)) == (40000, 52000)
    for wanted in (Wanted(4.5), Wanted(height=20000)):
        with pytest.raises(ValueError, match=r"above 4 times a side .* at most 16,777,216 pixels"):
            result_size(4096, 4097, wanted)


def test_uncertainty_comes_beside_the_image():
    def unsure(params, lr, noise):
        image = repeat(params, lr, noise).image
        return Restoration(image, image, image, 0.4 + 0.3 * (enlarge(lr) + 1))

    upscaler = Upscaler(unsure, {}, tile=64, recipe={"prior": {"un": 0.1, "min_noise": 0.4}})
    image = photo(70, 90)
    result, uncertainty = upscaler(image, return_uncertainty=True)
    np.testing.assert_array_equal(result, upscaler(image))
    assert np.abs(uncertainty - image.mean(-1) / 255).max() < 1e-5
    for prior in ({"un": 0, "min_noise": 0.4}, {"un": 0.1, "min_noise": 1.0}):
        with pytest.raises(ValueError, match="can't tell where it is unsure"):
            Upscaler(unsure, {}, recipe={"prior": prior})(image, return_uncertainty=True)


@pytest.mark.parametrize("scale", [2, 6])
def test_progress_grows_to_the_whole_and_may_end_the_work(scale):
    seen = []
    upscaler = Upscaler(repeat, {}, tile=64)
    upscaler(photo(100, 150), scale=scale, on_progress=lambda *args: seen.append(args))
    area = scale**2 * 100 * 150
    assert seen == sorted(seen)
    assert len({done for done, _ in seen}) > 5
    assert seen[-1] == (area, area)

    def cancel(done, total):
        if done > 0.4 * total:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        upscaler(photo(100, 150), scale=scale, on_progress=cancel)


def test_a_list_gives_a_list():
    images = [photo(20 + n, 60, seed=n) for n in range(4)]
    upscaler = Upscaler(repeat_with_noise, {}, tile=64, batch=2)
    for result, image in zip(upscaler(images, seed=3), images, strict=True):
        np.testing.assert_array_equal(result, upscaler(image, seed=3))
    assert upscaler([]) == []


def test_device_and_precision_are_chosen(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    image = photo(16, 16)
    plain = Upscaler.from_pretrained(model, tile=64)
    chosen = Upscaler.from_pretrained(model, tile=64, device="cpu:0", precision="auto")
    np.testing.assert_array_equal(plain(image), chosen(image))
    short = Upscaler.from_pretrained(model, tile=64, precision="bfloat16")
    assert (short(image) != plain(image)).any()
    assert short.describe("0", 0) != plain.describe("0", 0)
    with pytest.raises(ValueError, match="there is no device 'gpu:1': choose cpu, or"):
        Upscaler.from_pretrained(model, device="gpu:1")
    with pytest.raises(ValueError, match="precision is 'half': choose one of float32"):
        Upscaler.from_pretrained(model, precision="half")


def test_transparency_is_enlarged_smoothly():
    alpha = np.tile(np.arange(20, dtype=np.uint8) * 10, (16, 1))
    result = Upscaler(repeat, {})(np.dstack([photo(16, 20), alpha]))
    assert result.shape == (64, 80, 4)
    # Cubic convolution keeps a straight line straight, away from its ends: half-pixel centres.
    line = 10 * ((np.arange(80) + 0.5) / 4 - 0.5)
    assert np.abs(result[..., 8:72, 3] - line[8:72]).max() <= 1


def test_hidden_colours_do_not_bleed():
    image = np.zeros((64, 64, 4), np.uint8)  # green where hidden, red where seen
    image[:, :32] = (255, 0, 0, 255)
    image[:, 32:] = (0, 255, 0, 0)
    result = Upscaler(bicubic, {})(image)
    seen = result[result[..., 3] > 0]
    assert seen[:, 0].min() >= 254
    assert seen[:, 1].max() <= 1


@pytest.mark.parametrize("tile", [0, 100, -64])
def test_tiles_that_networks_cannot_take_are_refused(tile):
    with pytest.raises(ValueError, match=f"tile is {tile}, but must be a multiple of 64"):
        Upscaler(repeat, {}, tile=tile)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_a_loaded_model_pads_samples_and_crops(model):
    image = photo(40, 60)
    upscaler = Upscaler.from_pretrained(model)
    result = upscaler(image, seed=3)

    padded = np.pad(image, ((0, 24), (0, 4), (0, 0)), mode="reflect")[None] / np.float32(127.5) - 1
    noise = noise_window(3, 0, 0, 256, 256)[None]
    whole = upscaler.super_resolve(upscaler.params, padded, noise)
    expected = whole.image[0, :160, :240]
    np.testing.assert_array_equal(result, np.round((np.asarray(expected) + 1) * 127.5))

    np.testing.assert_array_equal(upscaler(image, seed=3), result)
    assert (upscaler(image, seed=4) != result).mean() > 0.1


def test_the_recipe_names_what_decides_a_result(model):
    recipe = Upscaler.from_pretrained(model).recipe
    assert Upscaler.from_pretrained(model, method="ddim", min_noise=0.4).recipe == recipe
    others = [dict(steps=2), dict(method="ancestral"), dict(min_noise=0.5), dict(fidelity=0.5)]
    recipes = [Upscaler.from_pretrained(model, **other).recipe for other in others]
    recipes.append(Upscaler.from_pretrained().recipe)
    assert recipe not in recipes
    assert all(recipes.count(other) == 1 for other in recipes)


def test_a_model_without_estimator_is_refused(model, tmp_path):
    config, params = load_model(model)
    save_model(tmp_path / "half", config, {"denoiser": params["denoiser"]})
    with pytest.raises(ValueError, match="half holds no estimator"):
        Upscaler.from_pretrained(tmp_path / "half")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        Upscaler.from_pretrained(tmp_path / "gone")


def test_importing_the_package_does_not_import_jax():
    code = "import sys, upsr_jax; print('jax' in sys.modules, 'Upscaler' in dir(upsr_jax))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
