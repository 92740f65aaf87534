"""Images become batches of few shapes and come back whole."""

import itertools

import numpy as np
import pytest
from photos import draw_photo

from upsr_jax.evaluation.pieces import (
    SCALE,
    assemble,
    canvas_side,
    check_sides,
    cut,
    fill,
    group,
    piece_side,
    share,
)

SIDES = (64, 128, 192)


def enlarged(pieces):
    """Stand in for the networks: repeat pixels."""
    for piece in pieces:
        yield piece, [piece.pixels.astype(np.float32).repeat(SCALE, 0).repeat(SCALE, 1)]


@pytest.mark.parametrize("size", [(64, 64), (1, 65), (190, 129), (193, 5), (500, 321), (192, 640)])
def test_pieces_have_few_shapes_and_give_the_image_back(size):
    image = draw_photo(0, *size)
    pieces = cut("a", image, SIDES)
    (shape,) = {piece.pixels.shape for piece in pieces}
    assert shape[0] in SIDES and shape[1] in SIDES
    ((name, (whole,)),) = assemble(enlarged(pieces))
    assert name == "a"
    expected = image.repeat(SCALE, 0).repeat(SCALE, 1)
    np.testing.assert_allclose(whole, expected, atol=1e-4)


def test_a_small_image_is_padded_by_reflection_to_the_next_side():
    image = draw_photo(0, 60, 100)
    (piece,) = cut("a", image, SIDES)
    expected = np.pad(image, ((0, 4), (0, 28), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(piece.pixels, expected)


def test_tiles_lie_as_in_the_released_test():
    """512 pixels, 448 apart, the last moved inward; along a short side there is one."""
    pieces = cut("a", np.zeros((1000, 300, 3), np.uint8), (384, 512))
    assert pieces[0].corners == [(0, 0), (448, 0), (488, 0)]
    assert {piece.pixels.shape for piece in pieces} == {(512, 384, 3)}


def test_overlaps_are_averaged_over_all_tiles_in_them():
    pieces = cut("a", np.zeros((500, 192, 3), np.uint8), SIDES)
    tops = [top for top, _ in pieces[0].corners]
    assert tops == [0, 128, 256, 308]
    constants = [(piece, [np.full((768, 768, 3), i, np.float32)]) for i, piece in enumerate(pieces)]
    ((_, (whole,)),) = assemble(constants)
    for row in (0, 511, 512, 767, 768, 1100, 1240, 1280, 1999):
        covering = [i for i, top in enumerate(tops) if 4 * top <= row < 4 * top + 768]
        np.testing.assert_allclose(whole[row], np.mean(covering))


def test_images_in_turn_are_kept_apart():
    images = {name: draw_photo(i, 300, 200 + 40 * i) for i, name in enumerate("abc")}
    parts = [list(enlarged(cut(name, image, SIDES))) for name, image in images.items()]
    mixed = [part for parts in itertools.zip_longest(*parts) for part in parts if part]
    found = {name: whole for name, (whole,) in assemble(mixed)}
    for name, image in images.items():
        np.testing.assert_allclose(found[name][::SCALE, ::SCALE], image, atol=1e-4)


def test_canvases_hold_their_images_and_are_few():
    sides = [canvas_side(side, SIDES) for side in range(1, 1000)]
    assert all(canvas >= side for side, canvas in enumerate(sides, 1))
    assert sorted(set(sides)) == [16, 32, 64, 128, *range(192, 1001, 128), 1088]
    assert [piece_side(side, SIDES) for side in (1, 64, 65, 192, 9999)] == [64, 64, 128, 192, 192]


@pytest.mark.parametrize("sides", [(), (64, 100), (128, 64), (64, 64), (0, 128), (64,)])
def test_unfit_sides_are_refused(sides):
    with pytest.raises(ValueError, match="must be ascending multiples of 64"):
        check_sides(sides)


def test_groups_keep_order_and_lose_nothing():
    items = [(i % 3, i) for i in range(20)]
    groups = list(group(items, lambda item: item[0], 4))
    assert sorted(itertools.chain(*groups)) == sorted(items)
    assert all(len({key for key, _ in members}) == 1 for members in groups)
    for key in range(3):
        numbers = [i for members in groups for k, i in members if k == key]
        assert numbers == sorted(numbers)
    assert [len(members) for members in groups] == [4, 4, 4, 3, 3, 2]
    assert fill([1, 2], 4) == [1, 2, 2, 2]


def test_the_largest_group_goes_when_too_many_wait():
    """Of keys that all differ but one, five wait at most."""
    drawn = []

    def items():
        for key in "abcbdefghi":
            drawn.append(key)
            yield key

    groups = group(items(), str, 3, most=5)
    assert next(groups) == ["b", "b"]
    assert drawn == list("abcbde")
    assert next(groups) == ["a"]
    assert len(drawn) == 8
    assert sorted(itertools.chain(*groups)) == list("cdefghi")


@pytest.mark.parametrize(("images", "processes"), [(10, 3), (2, 4), (0, 2), (8, 1)])
def test_processes_share_evenly(images, processes):
    parts = [share(range(images), i, processes) for i in range(processes)]
    assert list(itertools.chain(*parts)) == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
