"""Bootstrap intervals, against distributions that are known."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from upsr_jax.metrics.intervals import bootstrap, mean_over


def test_of_two_values_the_means_are_binomial():
    """A resample of 30 ones and 70 zeros holds Binomial(100, 0.3) ones."""
    values = np.array([1.0] * 30 + [0.0] * 70)
    found = bootstrap(values)
    assert found.mean == pytest.approx(0.3)
    expected = binom.ppf([0.025, 0.975], 100, 0.3) / 100
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.0101)


def test_of_many_values_the_means_are_normal():
    values = np.random.default_rng(0).normal(5, 2, 2500)
    found = bootstrap(values)
    expected = norm.interval(0.95, values.mean(), values.std() / np.sqrt(2500))
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.004)


def test_it_moves_with_the_values_and_the_seed_decides():
    values = np.random.default_rng(1).exponential(size=40)
    found = bootstrap(values)
    assert found == bootstrap(values)
    assert found != bootstrap(values, seed=1)
    np.testing.assert_allclose(bootstrap(3 * values + 1), 3 * np.array(found) + 1)


def test_equal_values_leave_no_doubt():
    assert bootstrap(np.full(7, 2.5)) == (2.5, 2.5, 2.5)
    assert bootstrap(np.array([4.0])) == (4, 4, 4)
    assert bootstrap(np.array([0.1] * 3)) == (np.mean([0.1] * 3),) * 3


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_value_that_is_not_finite_makes_such_a_mean(value):
    for values in ([value], [20.0, value, 30.0]):
        np.testing.assert_array_equal(bootstrap(np.array(values)), [value] * 3)


def test_rows_without_a_number_do_not_count():
    rows = [{"a": 1.0}, {"a": None}, {}, {"a": 1.0}]
    assert mean_over(rows, "a") == {"mean": 1.0, "low": 1.0, "high": 1.0, "images": 2}
    assert mean_over(rows, "b") is None


def test_no_value_has_no_mean():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap(np.array([]))
