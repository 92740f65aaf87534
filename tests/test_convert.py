"""Names, shapes and bytes of PyTorch state dicts, and the errors of those that don't fit.

That axes move as they must, the goldens of the networks show.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden import manifest

from configs import realsr_x4, tiny
from upsr_jax.convert import (
    Buffer,
    denoiser_from_torch,
    denoiser_table,
    denoiser_to_torch,
    estimator_from_torch,
    estimator_to_torch,
    lpips_from_torch,
    lpips_table,
)

TINY = tiny.get_config()
TABLES = {
    "unet_tiny": denoiser_table(TINY.model),
    "unet_realsr_x4": denoiser_table(realsr_x4.get_config().model),
    "lpips_vgg": lpips_table(),
}
BOTH_WAYS = {
    "unet_tiny": (denoiser_from_torch, denoiser_to_torch, TINY.model),
    "atd_tiny": (estimator_from_torch, estimator_to_torch, TINY.estimator),
}


def random_bytes(name: str, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Draw a network's parameters bit by bit, so that not-a-numbers are among them."""
    generator = np.random.default_rng(0)

    def draw(shape: list[int]) -> np.ndarray:
        count = int(np.prod(shape))
        return np.frombuffer(generator.bytes(count * dtype.itemsize), dtype).reshape(shape)

    entries = [entry for entry in manifest(name) if entry["kind"] == "parameter"]
    return {entry["name"]: draw(entry["shape"]) for entry in entries}


@pytest.mark.parametrize("network", TABLES)
def test_table_is_the_manifest(network):
    table, expected = TABLES[network], manifest(network)
    assert [entry.torch_name for entry in table] == [entry["name"] for entry in expected]
    for entry, listed in zip(table, expected, strict=True):
        assert isinstance(entry, Buffer) == (listed["kind"] == "buffer")
        if isinstance(entry, Buffer):
            assert entry.value.shape == tuple(listed["shape"])
            assert entry.value.dtype == listed["dtype"]


def test_mask_of_the_released_weights():
    """Of 8 x 8 windows of 8 x 8 tokens, the bottom ones part their left from their right half."""
    (mask, *_) = [
        e.value
        for e in TABLES["unet_tiny"]
        if isinstance(e, Buffer) and e.torch_name.endswith("attn_mask")
    ]
    is_right = np.arange(64) % 8 >= 4
    np.testing.assert_array_equal(mask[:56], 0)
    expected = np.where(is_right[:, None] == is_right, 0, -100)
    np.testing.assert_array_equal(mask[56:], np.broadcast_to(expected, (8, 64, 64)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("network", BOTH_WAYS)
def test_there_and_back_is_bit_for_bit(network, dtype):
    from_torch, to_torch, config = BOTH_WAYS[network]
    original = random_bytes(network, np.dtype(dtype))
    back = to_torch(from_torch(original, config), config)
    assert list(back) == [entry["name"] for entry in manifest(network)]
    for entry in manifest(network):
        array = back[entry["name"]]
        assert array.shape == tuple(entry["shape"])
        assert array.flags.c_contiguous
        if entry["kind"] == "parameter":
            assert array.dtype == dtype
            assert array.tobytes() == original[entry["name"]].tobytes()
        else:
            assert array.dtype == entry["dtype"]


def test_buffers_may_come_along():
    original = random_bytes("unet_tiny", np.dtype(np.float32))
    whole = denoiser_to_torch(denoiser_from_torch(original, TINY.model), TINY.model)
    assert len(whole) > len(original)
    again = denoiser_to_torch(denoiser_from_torch(whole, TINY.model), TINY.model)
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in whole.items()}


FROM_TORCH = {
    "unet_tiny": lambda arrays: denoiser_from_torch(arrays, TINY.model),
    "atd_tiny": lambda arrays: estimator_from_torch(arrays, TINY.estimator),
    "lpips_vgg": lpips_from_torch,
}


@pytest.mark.parametrize("network", FROM_TORCH)
def test_one_error_lists_every_fault(network):
    entries = [entry for entry in manifest(network) if entry["kind"] == "parameter"]
    arrays = {e["name"]: np.broadcast_to(np.float32(0), e["shape"]) for e in entries}
    absent, swapped, longer = entries[0], entries[2], entries[-1]
    del arrays[absent["name"]]
    arrays[swapped["name"]] = np.zeros((5, *swapped["shape"]), np.float32)
    arrays[longer["name"]] = np.zeros(7, np.float32)
    arrays |= {"head.weight": np.zeros((2, 3), np.float32), "step": np.zeros((), np.int64)}
    with pytest.raises(ValueError, match=f"5 of {len(entries)} entries") as info:
        FROM_TORCH[network](arrays)
    message = str(info.value)
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in entries}
    for fault in (
        f"missing {absent['name']} {shapes[absent['name']]}",
        "surplus head.weight (2, 3)",
        "surplus step ()",
        f"misshapen {swapped['name']}: {(5, *shapes[swapped['name']])} instead of "
        f"{shapes[swapped['name']]}",
        f"misshapen {longer['name']}: (7,) instead of {shapes[longer['name']]}",
    ):
        assert fault in message


@pytest.mark.parametrize("network", BOTH_WAYS)
def test_the_way_back_lists_every_fault(network):
    from_torch, to_torch, config = BOTH_WAYS[network]
    given = from_torch(random_bytes(network, np.dtype(np.float32)), config)
    params: Any = flatten_dict(given, sep="/")
    (absent, *_, swapped) = params
    shapes = {name: leaf.shape for name, leaf in params.items()}
    del params[absent]
    params[swapped] = np.zeros((*shapes[swapped], 1))
    params["head/kernel"] = np.zeros((2, 3))
    with pytest.raises(
        ValueError, match=f"params don't fit .* \\(3 of {len(shapes)} entries"
    ) as info:
        to_torch(unflatten_dict(params, sep="/"), config)
    for fault in (
        f"missing {absent} {shapes[absent]}",
        "surplus head/kernel (2, 3)",
        f"misshapen {swapped}: {(*shapes[swapped], 1)} instead of {shapes[swapped]}",
    ):
        assert fault in str(info.value)
