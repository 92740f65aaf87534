"""What the log says of the steps since its last line."""

import time

import numpy as np
import pytest

from upsr_jax.train import meter as meter_module
from upsr_jax.train.meter import Meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: now[0])
    assert time.perf_counter() == 100.0
    return now


def test_terms_are_averaged_and_those_by_timestep_divided_by_its_share(clock):
    meter = Meter(4, None, None)
    clock[0] += 1
    meter.add({"loss": np.array(1.0), "mse_by_t": np.array([0.5, 0.0, 0.2]),
               "share_by_t": np.array([0.5, 0.0, 0.5])})  # fmt: skip
    meter.add({"loss": np.array(3.0), "mse_by_t": np.array([0.5, 0.0, 0.0]),
               "share_by_t": np.array([1.0, 0.0, 0.0])})  # fmt: skip
    values = meter.summary()
    assert values["loss"] == 2
    assert values["mse_t0"] == pytest.approx(1.0 / 1.5)
    assert values["mse_t2"] == pytest.approx(0.2 / 0.5)
    assert "mse_t1" not in values  # no image had it
    assert "model_flop_utilization" not in values


def test_skipped_steps_take_time_and_are_part_of_no_mean(clock):
    meter = Meter(4, None, None, skipped=3)
    meter.add({"loss": np.array(2.0)})
    meter.skip()
    clock[0] += 1
    values = meter.summary()
    assert (values["loss"], values["images_per_second"], values["skipped_steps"]) == (2, 8, 4)
    assert meter.in_row == 1
    meter.skip()
    clock[0] += 1
    values = meter.summary()  # of a window without a mean
    assert "loss" not in values and values["skipped_steps"] == 5
    assert meter.in_row == 2
    meter.add({"loss": np.array(2.0)})
    assert meter.in_row == 0


def test_rates_count_training_and_waiting_alone(clock):
    meter = Meter(batch_size=4, flops=6e12, peak=2e12)
    with meter.paused():
        clock[0] += 1000
    with meter.waiting():
        clock[0] += 2
    clock[0] += 6
    for _ in range(2):
        meter.add({"loss": np.array(1.0)})
    values = meter.summary()
    assert values["images_per_second"] == 2 * 4 / 8
    assert values["data_wait_share"] == 2 / 8
    assert values["model_flop_utilization"] == 2 * 6e12 / 8 / 2e12
    clock[0] += 5
    meter.add({"loss": np.array(7.0)})
    again = meter.summary()
    assert (again["loss"], again["images_per_second"], again["data_wait_share"]) == (7, 4 / 5, 0)
