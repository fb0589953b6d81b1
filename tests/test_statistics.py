import numpy as np
import pytest
import torch
from conftest import all_rows, assert_same_weights


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_equal_numpy_over_uneven_batches(script, shape, offset):
    rng, stats = np.random.default_rng(0), script.RunningMeanStd(shape)
    batches = [offset + rng.normal(i, 1 + i, (n, *shape)) for i, n in enumerate((1, 500, 2, 37, 64))]
    for batch in batches:
        stats.update(batch)
    rows = np.concatenate(batches)
    np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, rows.var(0), rtol=1e-8)
    assert stats.count == len(rows)
    mean, std = stats.moments()
    assert mean.dtype == std.dtype == np.float32
    assert mean.shape == std.shape == shape
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, rows.std(0), rtol=1e-5)


def test_before_the_first_batch_mean_0_and_std_1(script):
    mean, std = script.RunningMeanStd((2,)).moments()
    np.testing.assert_allclose(mean, 0)
    np.testing.assert_allclose(std, 1)


def test_moments_are_copies(script):
    stats = script.RunningMeanStd((2,))
    moments = stats.moments()
    stats.update(np.ones((3, 2)))
    np.testing.assert_allclose(moments, [[0, 0], [1, 1]])


def test_survive_a_state_dict_and_stay_float64(script, agent, action_space):
    agent.obs_stats.update(1e6 + np.random.default_rng(0).normal(size=(50, 3)))
    agent.return_stats.update(np.arange(7.0))
    other = script.ActorCritic(3, action_space, 16)
    other.load_state_dict(agent.state_dict())
    other.to(torch.float32)
    assert_same_weights(other.state_dict(), agent.state_dict())
    assert other.obs_stats.mean.dtype == torch.float64


def test_evaluation_leaves_them_alone(script, agent, tiny, tmp_path):
    agent.obs_stats.update(np.random.default_rng(0).normal(size=(50, 3)))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    script.evaluate(agent, tiny(norm_obs=True, eval_episodes=3), tmp_path)
    assert_same_weights(agent.state_dict(), before)


@pytest.mark.parametrize("norm_obs, norm_value", [(True, True), (True, False), (False, True)])
def test_after_training_they_cover_all_observations_and_returns(script, tiny, record, norm_obs, norm_value):
    envs, rollouts, targets = record("make_env"), record("collect_rollout"), record("compute_gae")
    agent, _ = script.train(tiny(total_timesteps=80, norm_obs=norm_obs, norm_value=norm_value, checkpoint_interval=2))
    rows = np.array([obs for env in envs for obs, *_ in env.unwrapped.log])
    returns = [all_rows(rollout, returns) for (rollout, *_), (_, returns) in zip(rollouts, targets, strict=True)]
    assert len(rows) >= 80
    for used, stats, data in (
        (norm_obs, agent.obs_stats, rows),
        (norm_value, agent.return_stats, np.concatenate(returns)),
    ):
        assert stats.count == used * len(rows)
        if used:
            np.testing.assert_allclose(stats.mean, data.mean(0), rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(stats.var, data.var(0), rtol=1e-6)
