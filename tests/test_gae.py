import itertools

import numpy as np
import pytest
import reference


@pytest.fixture
def transitions():
    """60 random transitions each of 4 environments: some end by termination, truncation, both at once."""
    rng = np.random.default_rng(0)
    rewards, values, next_values = rng.normal(size=(3, 60, 4))
    terminated, truncated = rng.random((2, 60, 4)) < 0.2
    for flags in itertools.product((False, True), repeat=2):
        assert ((terminated == flags[0]) & (truncated == flags[1])).any()
    return {
        "rewards": rewards,
        "values": values,
        "next_values": next_values,
        "terminated": terminated,
        "truncated": truncated,
    }


@pytest.mark.parametrize("gamma, gae_lambda", [*itertools.product((0.0, 0.9, 1.0), (0.0, 0.7, 1.0))])
def test_equals_the_definition(script, transitions, gamma, gae_lambda):
    advantages, returns = script.compute_gae(**transitions, gamma=gamma, gae_lambda=gae_lambda)
    assert advantages.shape == returns.shape == (60, 4)
    for column in range(4):
        one = {name: array[:, column] for name, array in transitions.items()}
        expected = reference.gae(**one, gamma=gamma, gae_lambda=gae_lambda)
        np.testing.assert_allclose(advantages[:, column], expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(returns[:, column], expected + one["values"], rtol=1e-12, atol=1e-12)
        alone, _ = script.compute_gae(**one, gamma=gamma, gae_lambda=gae_lambda)
        np.testing.assert_array_equal(alone, advantages[:, column])


@pytest.mark.parametrize(
    "terminated, truncated, expected",
    [
        (True, False, [1.0 + 0.5 * 2.0, 2.0]),
        (True, True, [1.0 + 0.5 * 2.0, 2.0]),
        (False, True, [1.0 + 0.5 * (2.0 + 0.5 * 8.0), 2.0 + 0.5 * 8.0]),
        (False, False, [1.0 + 0.5 * (2.0 + 0.5 * 8.0), 2.0 + 0.5 * 8.0]),
    ],
)
def test_lambda_1_sums_discounted_rewards_and_bootstraps_all_but_termination(script, terminated, truncated, expected):
    rewards = np.array([1.0, 2.0])
    values = np.array([3.0, 4.0])
    next_values = np.array([4.0, 8.0])
    ends = np.array([False, terminated]), np.array([False, truncated])
    _, returns = script.compute_gae(rewards, values, next_values, *ends, 0.5, 1.0)
    np.testing.assert_allclose(returns, expected)


def test_arguments_stay_as_they_are(script, transitions):
    copies = {name: array.copy() for name, array in transitions.items()}
    script.compute_gae(**transitions, gamma=0.9, gae_lambda=0.9)
    np.testing.assert_equal(transitions, copies)
