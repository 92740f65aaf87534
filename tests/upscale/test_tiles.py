"""Tiles cover the picture, blend back to it without a trace, and see one field of noise."""

import numpy as np
import pytest
from photos import photo

from upsr_jax.upscale.tiles import (
    blend_bands,
    noise_window,
    pad_reflect,
    tile_grid,
    tile_side,
    tile_weights,
)

AXES = [(64, 64, 32), (65, 64, 32), (100, 64, 32), (1000, 256, 32), (300, 128, 0), (97, 32, 16)]


@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_tiles_cover_the_axis_and_overlap(length, tile, overlap):
    starts = tile_grid(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - tile
    steps = np.diff(starts)
    assert (steps[:-1] == tile - overlap).all()
    assert (steps > 0).all()
    assert (steps <= tile - overlap).all()


def test_grid_of_the_paper_s_protocol():
    # Tiles of 512 at a stride of 448: worked out by hand for a side of 1100.
    assert tile_grid(1100, 512, 64) == [0, 448, 588]


@pytest.mark.parametrize(("length", "tile", "overlap"), [(63, 64, 32), (100, 32, 32), (9, 4, -1)])
def test_impossible_grids_are_refused(length, tile, overlap):
    with pytest.raises(ValueError, match=f"overlap {overlap} < tile {tile} <= length {length}"):
        tile_grid(length, tile, overlap)


@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_weights_sum_to_one_everywhere_and_fade_at_inner_edges(length, tile, overlap):
    starts = tile_grid(length, tile, overlap)
    weights = tile_weights(starts, tile, overlap, "feather")
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
    assert (weights > 0).all()
    if overlap:
        assert (weights[1:, 0] < 0.6).all()
        assert (np.abs(np.diff(weights)) < 2 / overlap).all()  # no step that could be seen


def cut(image, tops, lefts, shape):
    height, width = shape
    return [image[t : t + height, s : s + width] for t in tops for s in lefts]


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (200, 64), (150, 131)])
def test_cutting_and_blending_gives_the_image_back(size):
    pixels = photo(*size)
    signed = pixels.astype(np.float32) / 127.5 - 1
    tops, lefts = (tile_grid(length, 64, 16) for length in size)
    tiles = iter(cut(signed, tops, lefts, (64, 64)))
    bands = list(blend_bands(tiles, tops, lefts, (64, 64), 16, "feather"))
    blended = np.round((np.concatenate(bands) + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(blended, pixels)
    assert max(len(band) for band in bands) <= 64


@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_means_weigh_all_tiles_in_a_place_alike(length, tile, overlap):
    starts = tile_grid(length, tile, overlap)
    weights = tile_weights(starts, tile, overlap, "mean")
    for place in range(length):
        found = {
            weight[place - start]
            for start, weight in zip(starts, weights, strict=True)
            if 0 <= place - start < tile
        }
        covering = sum(0 <= place - start < tile for start in starts)
        assert found == {np.float32(1 / covering)}


def test_tiles_are_as_large_as_computes_least():
    assert [tile_side(length, 256, 32) for length in (257, 320, 360, 512, 600, 3000)] == [
        *(192, 192, 256, 192, 256, 256)
    ]
    for length in range(257, 1200, 7):
        pixels = {side: side * len(tile_grid(length, side, 32)) for side in (128, 192, 256)}
        assert pixels[tile_side(length, 256, 32)] == min(pixels.values())
    assert tile_side(300, 64, 32) == 64 and tile_side(300, 192, 130) == 192


def test_another_blend_is_refused():
    with pytest.raises(ValueError, match="blend is 'max': choose feather or mean"):
        tile_weights([0], 64, 16, "max")


def test_tiles_that_disagree_fade_into_each_other():
    tops, lefts = [0], tile_grid(112, 64, 16)
    tiles = iter([np.zeros((64, 64, 3), np.float32), np.ones((64, 64, 3), np.float32)])
    (band,) = blend_bands(tiles, tops, lefts, (64, 64), 16, "feather")
    ramp = np.concatenate([np.zeros(48), np.arange(1, 17) / 17, np.ones(48)])
    np.testing.assert_allclose(band, np.broadcast_to(ramp[:, None], band.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "padded"),
    [((5, 7), (5, 7)), ((5, 7), (64, 64)), ((2, 3), (64, 128)), ((40, 60), (64, 64))],
)
def test_padding_reflects_as_often_as_needed(size, padded):
    image = photo(*size)
    result = pad_reflect(image, *padded)
    assert result.shape == (*padded, 3)
    np.testing.assert_array_equal(result[: size[0], : size[1]], image)
    # Reflection about the last pixel: one period is 0, 1, ..., n-1, n-2, ..., 1.
    period = np.concatenate([image, image[-2:0:-1]])
    period = np.concatenate([period, period[:, -2:0:-1]], axis=1)
    repeats = (-(-padded[0] // len(period)), -(-padded[1] // period.shape[1]), 1)
    np.testing.assert_array_equal(result, np.tile(period, repeats)[: padded[0], : padded[1]])


def test_padding_one_pixel_repeats_it():
    image = np.array([[[1, 2, 3]]], np.uint8)
    np.testing.assert_array_equal(pad_reflect(image, 64, 64), np.tile(image, (64, 64, 1)))


def test_noise_does_not_depend_on_the_window():
    whole = noise_window(3, 0, 0, 700, 600)
    assert whole.dtype == np.float32
    for top, left, height, width in [(0, 0, 1, 1), (255, 256, 2, 300), (100, 40, 600, 560)]:
        window = noise_window(3, top, left, height, width)
        np.testing.assert_array_equal(window, whole[top : top + height, left : left + width])


def test_noise_differs_by_seed_and_place():
    window = noise_window(3, 0, 0, 256, 256)
    others = [noise_window(4, 0, 0, 256, 256)]
    others += [noise_window(3, *corner, 256, 256) for corner in [(0, 256), (256, 0), (256, 256)]]
    for other in others:
        assert abs(np.corrcoef(window.ravel(), other.ravel())[0, 1]) < 0.01  # 4.4 standard errors


def test_noise_is_standard_normal_and_white():
    noise = noise_window(0, 0, 0, 1024, 1024).astype(np.float64)
    count = noise.size
    standard_error = 1 / np.sqrt(count)
    assert abs(noise.mean()) < 4 * standard_error
    assert abs((noise**2).mean() - 1) < 4 * np.sqrt(2) * standard_error
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96) * standard_error
    for shifted in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1]):
        assert abs(shifted.mean()) < 4.1 * standard_error
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert abs((noise[..., a] * noise[..., b]).mean()) < 4 * np.sqrt(3) * standard_error


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="key must be positive"):
        noise_window(-1, 0, 0, 4, 4)
