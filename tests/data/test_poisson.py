import numpy as np
import pytest
import scipy.stats

from upsr_jax.data.degradation.poisson import BINS, alias_tables, draw_counts

PHOTONS = [2**i for i in range(9)]


@pytest.mark.parametrize("photons", PHOTONS)
def test_tables_hold_the_poisson_distribution_of_every_level(photons):
    limit, step = alias_tables(photons)
    count = np.arange(BINS)
    kept = limit - count
    probabilities = kept.copy()
    np.add.at(probabilities, (np.arange(256)[:, np.newaxis], count + step), 1 - kept)
    mean = photons * np.arange(256)[:, np.newaxis] / 255
    expected = scipy.stats.poisson.pmf(count, mean)
    np.testing.assert_allclose(probabilities / BINS, expected, rtol=0, atol=1e-12)
    assert scipy.stats.poisson.sf(BINS - 1, photons) < 1e-40


@pytest.mark.parametrize("photons", [1, 16, 256])
def test_draws_follow_the_distribution_of_their_level(photons):
    draws = 20_000
    levels = np.array([0, 1, 100, 255], np.uint8)
    counts = draw_counts(np.random.default_rng(0), np.tile(levels, (draws, 1)), photons)
    assert counts.shape == (draws, 4)
    assert not counts[:, 0].any()
    for column, level in enumerate(levels):
        poisson = scipy.stats.poisson(photons * int(level) / 255)
        for count in range(int(poisson.ppf(1e-3)), int(poisson.ppf(1 - 1e-3)) + 1):
            hits, probability = np.sum(counts[:, column] == count), poisson.pmf(count)
            deviation = np.sqrt(draws * probability * (1 - probability))
            assert abs(hits - draws * probability) <= 4.5 * deviation


def test_draws_of_neighbours_are_independent():
    counts = draw_counts(np.random.default_rng(0), np.full((512, 512), 128, np.uint8), 64)
    for a, b in ((counts[:, 1:], counts[:, :-1]), (counts[1:], counts[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
