"""Images come in batches of few shapes, and processes share them."""

import itertools

import pytest

from upsr_jax.evaluation.pieces import canvas_side, group, repeat_last, share


def test_canvases_hold_their_images_and_are_few():
    sides = [canvas_side(side) for side in range(1, 1000)]
    assert all(canvas >= side for side, canvas in enumerate(sides, 1))
    assert sorted(set(sides)) == [16, 32, *range(64, 513, 64), 768, 1024]


def test_groups_keep_order_and_lose_nothing():
    items = [(i % 3, i) for i in range(20)]
    groups = list(group(items, lambda item: item[0], 4))
    assert sorted(itertools.chain(*groups)) == sorted(items)
    assert all(len({key for key, _ in members}) == 1 for members in groups)
    for key in range(3):
        numbers = [i for members in groups for k, i in members if k == key]
        assert numbers == sorted(numbers)
    assert [len(members) for members in groups] == [4, 4, 4, 3, 3, 2]
    assert repeat_last([1, 2], 4) == [1, 2, 2, 2]


def test_an_item_without_a_key_goes_at_once():
    keys = {"a": "a", "x": None}
    assert list(group("aaxa", keys.get, 2)) == [["a", "a"], ["x"], ["a"]]


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
