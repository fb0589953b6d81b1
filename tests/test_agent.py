"""ActorCritic and its statistics."""

import numpy as np
import pytest
import reference
import scipy.stats
import torch
from conftest import OBS_SPACE, assert_same, discrete_cases, discrete_script, make_envs, once_per_script
from gymnasium.spaces import MultiDiscrete

OBS = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)


@pytest.mark.parametrize("scale", [1, 1e3])
def test_numpy_actor_equals_forward(agent, scale):
    obs = np.float32(scale) * OBS
    with torch.no_grad():
        outputs, _ = agent(torch.as_tensor(obs))
    p = {name: value.numpy() for name, value in agent.state_dict().items()}
    np.testing.assert_allclose([agent.numpy_actor(row, p) for row in obs], outputs, rtol=1e-4, atol=1e-5)
    assert outputs.std(0).min() > 0.1


@pytest.mark.parametrize("size", [0.01, 1, 1000])
def test_observations_are_scaled_and_large_ones_grow_as_a_logarithm(agent, size):
    obs = size * OBS
    tenths = np.abs(obs / agent.obs_rms.numpy() / 10)
    seen = 10 * np.sign(obs) * np.log(tenths + np.sqrt(tenths**2 + 1))
    outputs = agent(torch.as_tensor(obs))
    torch.testing.assert_close(outputs[0], agent.actor(agent.backbone(torch.as_tensor(seen))), atol=1e-4, rtol=1e-4)


def test_values_are_in_units_of_the_return(agent):
    before = agent(torch.as_tensor(OBS))[1]
    mean = agent.return_mean.clone()
    std = agent.return_std.clone()
    agent.return_mean.fill_(7.0)
    agent.return_std.fill_(3.0)
    torch.testing.assert_close(agent(torch.as_tensor(OBS))[1], (before - mean) / std * 3 + 7)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_log_probabilities_and_entropies_are_those_of_the_formulas(agent, family):
    rng = np.random.default_rng(2)
    outputs = 3 * rng.normal(size=(200, 3 if family == "Box" else 30))
    if family == "Box":
        actions = rng.normal(size=outputs.shape)
        std = np.exp(agent.log_std.detach().numpy().astype(float))
        log_density = -(((actions - outputs) / std) ** 2) / 2 - np.log(std) - np.log(2 * np.pi) / 2
        expected = log_density.sum(-1), np.full(200, (np.log(std) + np.log(2 * np.pi * np.e) / 2).sum())
    else:
        actions = rng.integers(30, size=200)
        probabilities = softmax(outputs)
        expected = np.log(probabilities)[range(200), actions], -(probabilities * np.log(probabilities)).sum(-1)
    results = agent.log_prob_and_entropy(torch.tensor(outputs, dtype=torch.float32), torch.as_tensor(actions))
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-4, atol=1e-5)


@discrete_script
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_parts_of_an_action_are_independent(script, shape):
    """The logits of each part stand together. Samples have the probabilities of theirs, whatever the others are."""
    agent = script.ActorCritic(OBS_SPACE, MultiDiscrete(np.full(shape, 5)), script.Args())
    logits = np.random.default_rng(3).normal(size=(*shape, 5))
    policy = torch.distributions.Independent(torch.distributions.Categorical(logits=torch.tensor(logits)), len(shape))
    rows = np.tile(logits.ravel(), (50_000, 1))
    actions = agent.sample(rows, np.random.default_rng(4))
    assert actions.shape == (50_000, *shape)
    results = agent.log_prob_and_entropy(torch.tensor(rows), torch.as_tensor(actions))
    torch.testing.assert_close(results[0], policy.log_prob(torch.as_tensor(actions)))
    torch.testing.assert_close(results[1], policy.entropy().expand(50_000))
    shares = (actions[..., None] == np.arange(5)).mean(0)
    np.testing.assert_allclose(shares, softmax(logits), atol=0.01)
    assert (agent.greedy(rows[0]) == logits.argmax(-1)).all()


@discrete_script
@pytest.mark.parametrize("sizes", [[2, 3, 7, 1], [[2, 3], [3, 1]]])
def test_uneven_parts_have_their_own_choices_and_no_other(script, sizes):
    """Before and after an update: each starts uniform over its own, as the entropy says, and never leaves them."""
    args = script.Args(num_steps=500, learning_rate=0.1)
    agent = script.ActorCritic(OBS_SPACE, MultiDiscrete(sizes), args)
    rng = np.random.default_rng(5)
    for scale in (1, 0):
        outputs, _ = agent(torch.as_tensor(OBS[:1]).repeat(500, 1))
        actions = agent.sample(outputs.detach().numpy(), rng)
        assert (actions < sizes).all() and (agent.greedy(outputs[0].detach().numpy()) < sizes).all()
        logprobs, entropies = agent.log_prob_and_entropy(outputs, torch.as_tensor(actions))
        if scale:
            assert (actions.max(0) == np.array(sizes) - 1).all()
            np.testing.assert_allclose(logprobs.detach(), -np.log(np.prod(sizes)), atol=0.1)
            np.testing.assert_allclose(entropies.detach(), np.log(np.prod(sizes)), atol=0.01)
        optimizer = torch.optim.Adam(agent.parameters(), lr=0.1, weight_decay=0.1)
        rollout = {"obs": torch.as_tensor(OBS[:1]).repeat(500, 1), "actions": torch.as_tensor(actions)}
        rollout |= {"logprobs": logprobs.detach(), "rewards": np.ones(500)}
        script.ppo_update(agent, optimizer, rollout, rng.normal(size=500), np.ones(500), args, rng)


@discrete_cases
def test_a_mask_of_minus_infinity_leaves_the_gradient_finite(agent):
    logits = torch.randn(20, 30, requires_grad=True)
    masked = logits.masked_fill(torch.rand(20, 30) < 0.5, -torch.inf)
    logprobs, entropies = agent.log_prob_and_entropy(masked, masked.argmax(-1))
    (logprobs.mean() + entropies.mean()).backward()
    assert logprobs.isfinite().all() and entropies.isfinite().all() and logits.grad.isfinite().all()


def test_fresh_agent_is_close_to_uniform_and_has_values_of_0(script, action_space):
    """Of 0, since random values would distort the statistics of small returns."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    outputs, values = agent(torch.as_tensor(OBS))
    assert 0 < outputs.abs().max() < 0.1
    assert (values == 0).all()


@pytest.mark.parametrize("gain", [0, 0.01, 3])
def test_layer_init_gives_orthogonal_weights(script, gain):
    layer = script.layer_init(torch.nn.Linear(7, 4), gain)
    torch.testing.assert_close(layer.weight @ layer.weight.T, gain**2 * torch.eye(4))
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("offset", [0, 10_000])
def test_statistics_equal_numpy_over_all_rollouts(script, action_space, offset):
    """Also where returns differ little, compared with their size."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    assert (agent.obs_rms == 1).all() and (agent.return_mean, agent.return_std) == (0, 1)
    rng = np.random.default_rng(0)
    obs = rng.normal(offset, [0.1, 1, 10], (5, 64, 3)).astype(np.float32)
    returns = rng.normal(offset + np.arange(5)[:, None], 2, (5, 64))
    for i in range(5):
        agent.update_obs_stats(torch.as_tensor(obs[i]))
        agent.update_return_stats(returns[i], 1 / (i + 1))
    rows = obs.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(agent.obs_rms, np.sqrt((rows**2).mean(0)), rtol=1e-5)
    np.testing.assert_allclose(agent.return_mean, returns.mean(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(agent.return_std, returns.std(), rtol=1e-3)


@once_per_script
@pytest.mark.parametrize("unit", [1, 1e6])
def test_outliers_do_not_set_the_scale_of_observations(script, action_space, unit):
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    rng = np.random.default_rng(0)
    for _ in range(20):
        obs = unit * rng.normal(size=(1000, 3))
        obs[rng.random(obs.shape) < 0.01] = -9999 * unit
        agent.update_obs_stats(torch.as_tensor(obs, dtype=torch.float32))
    assert (agent.obs_rms > 0.9 * unit).all() and (agent.obs_rms < 3 * unit).all()


@once_per_script
def test_a_new_scale_of_most_observations_is_no_outlier(script, action_space):
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    for scale in (1, 1000):
        agent.update_obs_stats(torch.full((10, 3), float(scale)))
    np.testing.assert_allclose(agent.obs_rms, np.sqrt((1 + 1000**2) / 2), rtol=1e-5)


@once_per_script
def test_a_feature_that_is_mostly_zero_is_scaled(script, action_space):
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    agent.update_obs_stats(torch.eye(10)[:, :3] * 5)
    np.testing.assert_allclose(agent.obs_rms, np.sqrt(5**2 / 10), rtol=1e-5)


@once_per_script
def test_large_numbers_among_zeros_set_the_scale_at_once(script, action_space):
    """As of a load that is seldom carried: the median of all numbers is 0, and clips nothing."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    agent.update_obs_stats(torch.eye(10)[:, :3] * torch.tensor([1e4, 1e9, 1]))
    np.testing.assert_allclose(agent.obs_rms, np.array([1e4, 1e9, 1]) / 10**0.5, rtol=1e-5)


@once_per_script
def test_a_feature_whose_numbers_become_small_counts_its_other_numbers(script, action_space):
    """As of a lander at rest: its median velocity is no measure of the next fall."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    obs = torch.ones(100, 3)
    agent.update_obs_stats(obs)
    obs[1:] = 1e-3
    agent.update_obs_stats(obs)
    np.testing.assert_allclose(agent.obs_rms, np.sqrt((100 + 1 + 99e-6) / 200), rtol=1e-5)


@once_per_script
def test_few_zeros_count_where_other_numbers_are_rare(script, action_space):
    """Else rare states of a one-hot code would be blown up. The last feature comes late, and goes away again."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    rare = torch.eye(500)[:, :3] * torch.tensor([1, 5, 0.01])
    agent.update_obs_stats(rare * torch.tensor([1, 1, 0]))
    np.testing.assert_allclose(agent.obs_rms, np.array([1, 5, 10**0.5]) / 10**0.5, rtol=1e-5)
    agent.update_obs_stats(rare)
    np.testing.assert_allclose(agent.obs_rms, np.array([1, 5, 0.01]) / 10**0.5, rtol=1e-5)
    agent.update_obs_stats(torch.zeros(500, 3))
    np.testing.assert_allclose(agent.obs_rms, np.array([1, 5, 0.01]) / 10**0.5, rtol=1e-5)


@once_per_script
@pytest.mark.parametrize("scale", [1e-12, 1e20])
def test_statistics_of_extreme_observations_are_finite(script, action_space, scale):
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    for _ in range(2):
        agent.update_obs_stats(torch.tensor([[0, scale, -scale], [0, scale, scale]]))
    np.testing.assert_allclose(agent.obs_rms[1:], scale, rtol=1e-5)
    outputs, values = agent(torch.tensor([[0, scale, -scale], [1, 1, 1]]))
    assert outputs.isfinite().all() and values.isfinite().all()


@once_per_script
def test_a_feature_that_was_almost_0_leaves_the_network_finite(script, action_space):
    """As of a radial basis function far from its center: 1 divided by 1e-40 is infinite in 32 bits."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
    agent.update_obs_stats(torch.full((10, 3), 1e-40))
    outputs, values = agent(torch.ones(1, 3))
    assert outputs.isfinite().all() and values.isfinite().all()


@once_per_script
def test_statistics_of_equal_returns_are_finite(script, action_space):
    """Rounding errors must not make a negative variance of them."""
    for value in np.linspace(0.001, 1, 1000):
        agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
        agent.update_return_stats(np.full(512, value), 1)
        assert 1e-4 <= agent.return_std < 1e-2


def test_evaluation_of_another_network_is_refused(script, agent, tiny, monkeypatch):
    """What numpy_actor says is compared with forward here too."""
    forward = agent.forward
    args = tiny(eval_episodes=1)
    monkeypatch.setattr(agent, "forward", lambda obs: (1.1 * forward(obs)[0], forward(obs)[1]))
    with pytest.raises(ValueError, match="--no-numpy-actor"):
        script.evaluate(agent, make_envs(script, args), args)


def test_evaluation_is_greedy(script, agent, tiny):
    """Of the actions that reach the environment each one is the most likely at its observation."""
    args = tiny(eval_episodes=20)
    env = make_envs(script, args)
    script.evaluate(agent, env, args)
    (log,) = [single.unwrapped.log for single in getattr(env.unwrapped, "envs", [env])]
    obs, actions = (np.array(column) for column in list(zip(*log, strict=True))[:2])
    with torch.no_grad():
        outputs, _ = agent(torch.as_tensor(obs))
    expected = outputs.clamp(-1, 1) if actions.ndim > 1 else outputs.argmax(-1) - 4  # the space starts at -4
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


def test_evaluation_counts_its_first_episodes(script, agent, tiny, record, capsys):
    """Those beyond the number asked for, in the same rollout, do not count. It prints their spread, too."""
    rollouts = record("collect_rollout")
    args = tiny(eval_episodes=3, num_steps=64)
    mean_return = script.evaluate(agent, make_envs(script, args), args)
    returns = [episode["r"] for *_, episodes in rollouts for episode in episodes]
    assert len(returns) > 3
    assert mean_return == np.mean(returns[:3])
    spread = np.sqrt(np.mean((np.array(returns[:3]) - mean_return) ** 2))
    assert capsys.readouterr().out == f"evaluation: mean return {mean_return:.1f} +/- {spread:.1f} over 3 episodes\n"


def test_evaluation_leaves_the_agent_alone(script, agent, tiny):
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    args = tiny(eval_episodes=3)
    script.evaluate(agent, make_envs(script, args), args)
    assert_same(agent.state_dict(), before)


def test_samples_follow_the_distribution(agent, player, family):
    """All observations are one, so that the actions of a rollout are samples of one distribution."""
    played = player("Same")
    rollout, *_ = played.play(4000, np.random.default_rng(4))
    assert len(np.unique(rollout["obs"], axis=0)) == 1
    distribution, _ = reference.policy(agent, rollout["obs"][:1])
    actions = rollout["actions"].numpy()
    # A sound sampler is under 0.001 for one seed in a thousand; this seed is fixed.
    if family == "Box":
        for k in range(3):
            normal = scipy.stats.norm(distribution.mean[0, k].item(), distribution.stddev[0, k].item())
            assert scipy.stats.kstest(actions[:, k], normal.cdf).pvalue > 0.001
            assert k == 0 or scipy.stats.pearsonr(actions[:, k], actions[:, 0]).pvalue > 0.001
    else:
        expected = distribution.probs[0].detach().double().numpy() * len(actions)
        counts = np.bincount(actions, minlength=len(expected))
        common = expected > 5
        if not common.all():
            rest = [counts[~common].sum()], [expected[~common].sum()]
            counts, expected = (np.append(x[common], y) for x, y in zip((counts, expected), rest, strict=True))
        assert scipy.stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001
