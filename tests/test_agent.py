"""ActorCritic and its statistics."""

import numpy as np
import pytest
import reference
import scipy.stats
import torch
from conftest import OBS_SPACE, assert_same

OBS = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)


@pytest.mark.parametrize("norm_obs", [True, False])
def test_numpy_actor_equals_forward(agent, norm_obs):
    agent.obs_stats = agent.obs_stats if norm_obs else None
    with torch.no_grad():
        outputs, _ = agent(torch.as_tensor(OBS))
    actor = agent.numpy_actor()
    np.testing.assert_allclose([actor(obs) for obs in OBS], outputs, rtol=1e-4, atol=1e-5)
    assert outputs.std(0).min() > 0.1


def test_observations_are_normalized_and_cut_at_10(agent):
    obs, stats = torch.as_tensor(1e3 * OBS), agent.obs_stats
    outputs = agent(obs)
    agent.obs_stats = None
    for one, other in zip(outputs, agent(((obs - stats.mean) / stats.std).clamp(-10, 10)), strict=True):
        torch.testing.assert_close(one, other)


def test_values_are_in_units_of_the_return(agent):
    before = agent(torch.as_tensor(OBS))[1]
    mean, std = agent.return_stats.mean.clone(), agent.return_stats.std.clone()
    agent.return_stats.mean.fill_(7.0)
    agent.return_stats.std.fill_(3.0)
    torch.testing.assert_close(agent(torch.as_tensor(OBS))[1], (before - mean) / std * 3 + 7)


def test_evaluate_actions_equals_torch_distributions(agent):
    obs = torch.as_tensor(OBS)
    distribution, values = reference.policy(agent, obs)
    actions = distribution.sample()
    expected = distribution.log_prob(actions), distribution.entropy().mean(), values
    for ours, theirs in zip(agent.evaluate_actions(obs, actions), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_value", [True, False])
def test_fresh_agent_is_close_to_uniform_and_centered(script, action_space, norm_value):
    """Its values are 0 until the statistics of the returns are known, then random."""
    torch.manual_seed(0)
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args(norm_obs=False, norm_value=norm_value))
    outputs, values = agent(torch.as_tensor(OBS))
    assert outputs.abs().max() < 0.1
    assert (values == 0).all() == norm_value
    agent.return_stats.std.fill_(1)
    assert agent(torch.as_tensor(OBS))[1].std() > 0.05


@pytest.mark.parametrize("shared", [True, False])
def test_values_train_the_layers_of_the_policy_only_where_they_are_shared(script, action_space, shared):
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args(shared_backbone=shared))
    agent.return_stats.std.fill_(1)
    before = agent(torch.as_tensor(OBS))
    before[1].sum().backward()
    assert [layer.weight.grad is not None for layer in (agent.backbone[0], agent.backbone[2])] == [shared, shared]
    twin = script.ActorCritic(OBS_SPACE, action_space, script.Args(shared_backbone=shared))
    twin.load_state_dict(agent.state_dict())
    for one, other in zip(before, twin(torch.as_tensor(OBS)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_statistics_equal_numpy_over_uneven_batches(script, shape):
    rng, stats = np.random.default_rng(0), script.RunningMeanStd(shape)
    assert (stats.mean == 0).all() and (stats.std == 1).all()
    batches = [rng.normal(i, 1 + i, (n, *shape)).astype(np.float32) for i, n in enumerate((1, 500, 2, 37, 64))]
    for batch in batches:
        stats.update(batch)
    rows = np.concatenate(batches)
    np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats.std, rows.std(0), rtol=1e-4)
    assert stats.count == len(rows)


def test_evaluation_acts_by_forward(script, agent, tiny, tmp_path, monkeypatch):
    """A checkpoint of another network is never played by what numpy_actor says."""
    monkeypatch.setattr(agent, "numpy_actor", None)
    script.evaluate(agent, tiny(norm_obs=True, eval_episodes=1), tmp_path)


def test_evaluation_is_greedy(script, agent, tiny, tmp_path, record):
    """Of the actions that reach the environment each one is the most likely at its observation."""
    environments = record("make_envs" if hasattr(script, "make_envs") else "make_env")
    script.evaluate(agent, tiny(norm_obs=True, eval_episodes=20), tmp_path)
    (env,) = environments
    (log,) = [single.unwrapped.log for single in getattr(env.unwrapped, "envs", [env])]
    obs, actions = (np.array(column) for column in list(zip(*log, strict=True))[:2])
    with torch.no_grad():
        outputs, _ = agent(torch.as_tensor(obs))
    expected = outputs.clamp(-1, 1) if actions.ndim > 1 else outputs.argmax(-1) - 4  # the space starts at -4
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_the_agent_alone(script, agent, tiny, tmp_path):
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    script.evaluate(agent, tiny(norm_obs=True, eval_episodes=3), tmp_path)
    assert_same(agent.state_dict(), before)


def test_samples_follow_the_distribution(script, agent, player, family):
    """All observations are one, so that the actions of a rollout are samples of one distribution."""
    played = player("Same")
    rollout, *_ = played.play(4000, np.random.default_rng(4))
    assert len(np.unique(rollout["obs"], axis=0)) == 1
    distribution, _ = reference.policy(agent, rollout["obs"][:1])
    actions = rollout["actions"].numpy()
    # A sound sampler is under 0.001 for one seed in a thousand; this seed is fixed.
    if family == "Box":
        for k in range(3):
            normal = distribution.mean[0, k].item(), distribution.stddev[0, k].item()
            assert scipy.stats.kstest(actions[:, k], "norm", normal).pvalue > 0.001
            assert k == 0 or scipy.stats.pearsonr(actions[:, k], actions[:, 0]).pvalue > 0.001
    else:
        expected = distribution.probs[0].detach().double().numpy() * len(actions)
        counts = np.bincount(actions, minlength=len(expected))
        common = expected > 5
        if not common.all():
            rest = [counts[~common].sum()], [expected[~common].sum()]
            counts, expected = (np.append(x[common], y) for x, y in zip((counts, expected), rest, strict=True))
        assert scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001
