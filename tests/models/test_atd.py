"""The estimator against PyTorch goldens, naive restatements of its parts, and its properties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, manifest, nhwc, relative_error, weights
from jax import lax

from upsr_jax.convert import Buffer, estimator_from_torch, estimator_table, estimator_to_torch
from upsr_jax.models.atd import (
    ATD,
    CategoryAttention,
    depthwise_conv,
    l2_normalize,
    sorting_order,
)

TINY = {
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": 2,
    "window_size": 8,
    "category_size": 32,
    "num_tokens": 16,
    "reduced_dim": 4,
    "convffn_kernel_size": 5,
}
RELEASED = {"depths": (6, 6, 6, 6), "window_size": 16}
CONFIGS = {"atd_tiny": TINY, "atd_realsr_x4": RELEASED}


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(scope="module")
def tiny_params():
    """The seeded tiny network in float32."""
    params = estimator_from_torch(weights("atd_tiny"), TINY)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("atd_tiny", "atd_tiny_32x32"),
        ("atd_tiny", "atd_tiny_37x53"),
        ("atd_realsr_x4", "atd_realsr_x4"),
    ],
)
def test_output_is_pytorchs(network, name):
    expected = golden(name)
    with jax.enable_x64(True):
        params = estimator_from_torch(weights(network), CONFIGS[network])
        out = jax.jit(ATD(**CONFIGS[network]).apply)({"params": params}, nhwc(expected["x"]))
    assert out.dtype == np.float64
    assert relative_error(out, nhwc(expected["out"])) < 1e-7


def test_gradients_are_pytorchs():
    expected = golden("atd_tiny_gradients")
    x, target = nhwc(expected["x"]), nhwc(expected["target"])

    def l1(params, x):
        return jnp.abs(ATD(**TINY).apply({"params": params}, x) - target).mean()

    with jax.enable_x64(True):
        params = estimator_from_torch(weights("atd_tiny"), TINY)
        loss, gradients = jax.jit(jax.value_and_grad(l1))(params, x)
    assert loss == pytest.approx(float(expected["l1"]), rel=1e-6)
    buffers = {entry["name"] for entry in manifest("atd_tiny") if entry["kind"] == "buffer"}
    norms = {
        name: float(np.linalg.norm(gradient))
        for name, gradient in estimator_to_torch(gradients, TINY).items()
        if name not in buffers
    }
    expected_norms = {
        key.removeprefix("grad_norm/"): float(value)
        for key, value in expected.items()
        if key.startswith("grad_norm/")
    }
    # The bias before a softmax over the image changes nothing: its gradient is rounding alone.
    total = math.hypot(*expected_norms.values())
    assert norms == pytest.approx(expected_norms, rel=1e-6, abs=1e-14 * total)


@pytest.mark.parametrize("network", CONFIGS)
def test_table_is_the_manifest(network):
    table, expected = estimator_table(CONFIGS[network]), manifest(network)
    kinds = ["buffer" if isinstance(entry, Buffer) else "parameter" for entry in table]
    assert [entry.torch_name for entry in table] == [entry["name"] for entry in expected]
    assert kinds == [entry["kind"] for entry in expected]
    params = estimator_from_torch(weights(network), CONFIGS[network])
    for entry, array in zip(
        expected, estimator_to_torch(params, CONFIGS[network]).values(), strict=True
    ):
        assert array.shape == tuple(entry["shape"]), entry["name"]
        assert entry["kind"] == "parameter" or array.dtype == entry["dtype"]


def test_released_network_has_2532360_parameters():
    shapes = jax.eval_shape(ATD().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_532_360


def test_initial_values_are_the_papers():
    network = ATD(**{**TINY, "depths": (2,)})
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    layer = params["group_0"]["layer_0"]
    assert np.all(layer["token_attention"]["scale"] == 0.5)
    assert np.all(layer["category_attention"]["logit_scale"] == np.float32(math.log(10)))
    assert np.all(layer["sigma"] == 0)
    assert np.std(params["group_0"]["token_dictionary"]) == pytest.approx(1, rel=0.15)
    assert "sigma" not in params["group_0"]["layer_1"]
    for dense in (layer["qkv"], layer["window_attention"]["proj"], layer["ffn"]["fc1"]):
        assert np.all(dense["bias"] == 0)
        assert 0.015 < np.std(dense["kernel"]) < 0.022
    for conv, fan_in in ((params["conv_first"], 27), (layer["ffn"]["depthwise"], 25)):
        largest = max(np.abs(leaf).max() for leaf in conv.values())
        assert 0.95 * fan_in**-0.5 < largest <= fan_in**-0.5


def test_bfloat16_stays_near_float32(tiny_params):
    """One group holds the whole image here: no category chosen otherwise can move a pixel."""
    config = {**TINY, "category_size": 64}
    x = random(0, 2, 8, 8, 3).astype(np.float32)
    exact, rounded = (
        jax.jit(ATD(**config, dtype=dtype).apply)({"params": tiny_params}, x)
        for dtype in (None, jnp.bfloat16)
    )
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-4 < relative_error(rounded, exact) < 0.05


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 70), (3, 9)])
def test_any_size_is_flipped_to_whole_windows(tiny_params, height, width):
    x = random(0, 2, height, width, 3).astype(np.float32)
    apply = jax.jit(ATD(**TINY).apply)
    out = apply({"params": tiny_params}, x)
    assert out.shape == (2, 4 * height, 4 * width, 3)
    # Flips appended until it is enough, then cut, as the released network does with one.
    rows = np.concatenate([x, x[:, ::-1]] * 8, axis=1)[:, : -(-height // 8) * 8]
    whole = np.concatenate([rows, rows[:, :, ::-1]] * 8, axis=2)[:, :, : -(-width // 8) * 8]
    expected = apply({"params": tiny_params}, whole)[:, : 4 * height, : 4 * width]
    np.testing.assert_array_equal(out, expected)


def test_images_of_a_batch_do_not_meet():
    x = nhwc(golden("atd_tiny_32x32")["x"])
    with jax.enable_x64(True):
        params = {"params": estimator_from_torch(weights("atd_tiny"), TINY)}
        apply = jax.jit(ATD(**TINY).apply)
        assert relative_error(apply(params, x)[1:], apply(params, x[1:])) < 1e-12


@pytest.mark.parametrize(("length", "size"), [(24, 8), (21, 8), (5, 8), (1, 8)])
def test_category_attention_is_the_naive_one(length, size):
    """Pixel by pixel in NumPy; no golden has a length that isn't a multiple of the group."""
    batch, heads, width = 2, 2, 3
    channels = heads * width
    qkv = random(1, batch, length, 3 * channels)
    category = np.random.default_rng(2).integers(0, 4, (batch, length))
    kernel, scale = random(3, channels, channels), 0.7
    expected = np.zeros((batch, length, channels))
    for b in range(batch):
        order = sorted(range(length), key=lambda i: category[b, i])
        group = min(size, length)
        missing = -length % group
        order += order[::-1][:missing]
        for place in range(length):
            start = place // group * group
            members = order[start : start + group]
            query, keys, values = (
                array.reshape(-1, 3, heads, width)[:, part]
                for part, array in enumerate(
                    (qkv[b, order[place]][None], qkv[b, members], qkv[b, members])
                )
            )
            for head in range(heads):
                logits = keys[:, head] @ query[0, head] * np.exp(scale)
                probabilities = np.exp(logits - logits.max())
                probabilities /= probabilities.sum()
                columns = slice(head * width, (head + 1) * width)
                expected[b, order[place], columns] = probabilities @ values[:, head]
    with jax.enable_x64(True):
        params = {
            "logit_scale": np.full((1, 1), scale),
            "proj": {"kernel": kernel, "bias": np.zeros(channels)},
        }
        out = jax.jit(CategoryAttention(heads, size, 4).apply)({"params": params}, qkv, category)
    np.testing.assert_allclose(out, expected @ kernel, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("limit", [5, 2**30])
def test_equal_values_keep_their_order_when_they_are_sorted(limit):
    """Both ways: by numbers that hold value and place, and where those would be too large."""
    values = np.random.default_rng(0).integers(0, 5, (3, 100))
    order = jax.jit(sorting_order, static_argnums=1)(jnp.asarray(values), limit)
    np.testing.assert_array_equal(order, np.argsort(values, axis=-1, kind="stable"))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_depthwise_conv_is_the_grouped_convolution(size):
    x, kernel = random(0, 2, 6, 9, 4), random(1, size, size, 1, 4)
    weight = random(2, *x.shape)

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    with jax.enable_x64(True):
        x, kernel, weight = map(jnp.asarray, (x, kernel, weight))
        out, pullback = jax.vjp(depthwise_conv, x, kernel)
        expected, expected_pullback = jax.vjp(grouped, x, kernel)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
        for found, gradient in zip(pullback(weight), expected_pullback(weight), strict=True):
            np.testing.assert_allclose(found, gradient, rtol=1e-12, atol=1e-12)


def test_depthwise_conv_sums_bfloat16_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    out, pullback = jax.vjp(depthwise_conv, x, jnp.ones((23, 23, 1, 1), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 16, 16, 0]) == jnp.bfloat16(23**2)
    assert float(pullback(jnp.ones_like(out))[1][11, 11, 0, 0]) == 32**2


def test_l2_normalize_has_a_finite_gradient_at_zero():
    normalized = l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(normalized, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros((1, 2)))).all()
