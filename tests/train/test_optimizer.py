"""AdamW, Muon and the learning rate against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from tiny_model import random_params

from configs import tiny
from upsr_jax.train.config import check_config
from upsr_jax.train.optimizer import create_optimizer, create_schedule, inner_kernels


def test_learning_rate_warms_up_and_stays():
    schedule = create_schedule(1e-4, 5000, 0, 0.0)
    rates = [float(schedule(step)) for step in (0, 2500, 5000, 200_000)]
    assert rates == pytest.approx([1e-4 / 5000, 1e-4 * 2501 / 5000, 1e-4, 1e-4], rel=1e-3)


def test_learning_rate_falls_as_a_cosine():
    schedule = create_schedule(1.0, 10, 110, 0.1)
    rates = [float(schedule(step)) for step in (10, 35, 60, 110, 1000)]
    quarter = 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2
    assert rates == pytest.approx([1.0, quarter, 0.55, 0.1, 0.1], rel=1e-5)


def test_no_warm_up_starts_at_the_full_rate():
    assert float(create_schedule(0.5, 0, 0, 0.0)(0)) == 0.5
    assert float(create_schedule(0.5, 0, 100, 0.1)(0)) == 0.5


def test_decay_must_end_after_the_warm_up():
    with pytest.raises(ValueError, match="decay_steps 10 must be over warmup_steps 10"):
        create_schedule(1.0, 10, 10, 0.0)


def test_a_cosine_begins_again_at_each_restart():
    schedule = create_schedule(1.0, 10, 310, 0.1, restarts=(50, 110))
    rates = [float(schedule(step)) for step in (10, 30, 50, 80, 110, 210, 309, 310, 999)]
    assert rates == pytest.approx([1, 0.55, 1, 0.55, 1, 0.55, 0.1, 0.1, 0.1], abs=1e-4)
    assert float(schedule(49)) < 0.11


def test_the_rate_falls_at_milestones():
    schedule = create_schedule(1.0, 10, 0, 0.0, milestones=(100, 200), gamma=0.2)
    rates = [float(schedule(step)) for step in (0, 5, 10, 99, 101, 199, 201, 999)]
    assert rates == pytest.approx([0.1, 0.55, 1, 1, 0.2, 0.2, 0.04, 0.04], rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            dict(milestones=(100,), decay_steps=50),
            r"has milestones \(100,\) and decay_steps 50",
        ),
        (
            dict(milestones=(100, 50)),
            r"milestones is \(100, 50\): give growing numbers of",
        ),
        (dict(milestones=(10,)), "over warmup_steps 10"),
        (dict(milestones=(20.5,)), r"milestones is \(20\.5,\): it must be whole numbers"),
        (dict(restarts=(50,)), r"restarts \(50,\) and decay_steps 0: set decay_steps to where"),
        (dict(restarts=(50,), decay_steps=50), "over warmup_steps 10 and under decay_steps 50"),
    ],
)
def test_schedules_that_contradict_themselves_are_refused(values, message):
    """By `check_config`, that is, before anything is written."""
    config = tiny.get_config()
    config.schedule.update({"warmup_steps": 10} | values)
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_updates_are_adamws(clip_norm):
    rates, b1, b2, weight_decay = [0.1, 0.2, 0.3], 0.8, 0.9, 0.5
    generator = np.random.default_rng(0)
    gradients = [scale * generator.standard_normal(4) for scale in (100, 1, 0.01)]
    weights = expected = generator.standard_normal(4)
    mean = square = np.zeros(4)
    for step, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        if clip_norm:
            gradient = gradient * min(1, clip_norm / np.linalg.norm(gradient))
        mean = b1 * mean + (1 - b1) * gradient
        square = b2 * square + (1 - b2) * gradient**2
        direction = mean / (1 - b1**step) / (np.sqrt(square / (1 - b2**step)) + 1e-8)
        expected = expected - rate * (direction + weight_decay * expected)

    optimizer = create_optimizer(
        lambda count: jnp.asarray(rates)[count], b1, b2, weight_decay, clip_norm, muon=False
    )
    with jax.enable_x64(True):
        params = jnp.asarray(weights)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_muon_takes_orthogonal_steps_of_adamws_size():
    generator = np.random.default_rng(0)
    shapes = {
        ("res", "conv"): (3, 3, 16, 24),
        ("res", "dense"): (24, 40),
        ("ffn", "depthwise"): (5, 5, 1, 24),
        ("stem",): (3, 3, 6, 16),
    }
    gradients = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    params = traverse_util.unflatten_dict(
        {(*name, "kernel"): jnp.zeros(shape) for name, shape in shapes.items()}
        | {("res", "conv", "bias"): jnp.zeros(24)}
    )
    optimizer = create_optimizer(lambda count: 0.5, 0.9, 0.99, 0.0, 0.0, muon=True)
    signal = traverse_util.unflatten_dict(
        {(*name, "kernel"): jnp.asarray(x, jnp.float32) for name, x in gradients.items()}
        | {("res", "conv", "bias"): jnp.full(24, 7.0)}
    )
    updates, _ = optimizer.update(signal, optimizer.init(params), params)
    for name in (("res", "conv"), ("res", "dense")):
        matrix = np.asarray(updates[name[0]][name[1]]["kernel"]).reshape(-1, shapes[name][-1])
        # Newton and Schulz's five steps bring every singular value near 1, no nearer.
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.5 * 0.2 * max(matrix.shape) ** 0.5)
        assert 0.6 < singular.min() < singular.max() < 1.3, name
        assert np.sqrt((matrix**2).mean()) == pytest.approx(0.5 * 0.2, rel=0.2)
        step = np.sum(matrix * gradients[name].reshape(matrix.shape))
        assert step < 0, "it goes downhill"
    # Adam's first step is the sign; Nesterov's momentum looks b1 (1 - b1) / (1 - b1^2) ahead.
    size = 0.3 * 0.5 * (1 + 0.9 * 0.1 / 0.19)
    for others in (updates["ffn"]["depthwise"], updates["stem"]):
        np.testing.assert_allclose(np.abs(others["kernel"]), size, rtol=1e-4)
    np.testing.assert_allclose(updates["res"]["conv"]["bias"], -size, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "outer"),
    [("denoiser", {"stem", "head_out"}), ("estimator", {"conv_first", "upsample"})],
)
def test_muon_leaves_out_what_reads_and_writes_images(network, outer):
    params = random_params(tiny.get_config())[network]
    axes = traverse_util.flatten_dict(inner_kernels(params))
    left_out = {path[-2] for path, value in axes.items() if path[-1] == "kernel" and not value}
    assert left_out - {"depthwise"} == outer
    assert not any(value for path, value in axes.items() if path[-1] != "kernel")
