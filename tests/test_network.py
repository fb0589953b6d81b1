import numpy as np
import pytest
import reference
import scipy.stats
import torch
from gymnasium.spaces import Box
from torch import nn

OBS = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)


def greedy(distributions):
    """The mode of each component, (B, K)."""
    return torch.stack([distribution.mode for distribution in distributions], -1).numpy()


@pytest.fixture(params=[nn.Tanh, nn.ReLU])
def activation(request, agent):
    agent.backbone[1], agent.backbone[3] = request.param(), request.param()
    return request.param


@pytest.mark.usefixtures("activation")
@pytest.mark.parametrize("with_statistics", [False, True])
def test_numpy_policy_equals_torch(agent, action_space, with_statistics):
    if with_statistics:
        agent.obs_stats.update(np.random.default_rng(2).normal(0.5, 0.4, (100, 3)))
    normalise, act = agent.behaviour()
    with torch.no_grad():
        distributions, _ = reference.distributions(agent, action_space, torch.as_tensor(normalise(OBS)))
    noise = agent.sample_noise(None, len(OBS))
    actions = np.stack([act(inputs, zero) for inputs, zero in zip(normalise(OBS), noise, strict=True)])
    np.testing.assert_allclose(actions, greedy(distributions), rtol=1e-5, atol=1e-5)
    assert len(np.unique(actions, axis=0)) > 3  # so many different actions that equality says something


def test_policy_is_a_copy(agent):
    normalise, act = agent.behaviour()
    noise = agent.sample_noise(None, 1)[0]
    inputs = normalise(OBS[0])
    before = act(inputs, noise)
    agent.obs_stats.update(OBS + 100)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.neg_()
    np.testing.assert_array_equal(act(normalise(OBS[0]), noise), before)
    np.testing.assert_array_equal(normalise(OBS[0]), inputs)


def test_normalised_observations_are_scaled_and_cut_at_10(agent):
    rows = np.random.default_rng(2).normal([1, 100, -7], [0.1, 5, 2], (1000, 3))
    agent.obs_stats.update(rows)
    normalise, _ = agent.behaviour()
    obs = np.array([[1.05, 90, -8], [1e6, -1e6, -7]])
    expected = np.clip((obs - rows.mean(0)) / rows.std(0), -10, 10)
    np.testing.assert_allclose(normalise(obs), expected, rtol=1e-3, atol=1e-4)
    assert abs(expected).max() == 10


def test_observations_stay_as_they_are_without_statistics(agent):
    normalise, _ = agent.behaviour()
    np.testing.assert_allclose(normalise(1e6 * OBS), 1e6 * OBS, rtol=1e-6)


def test_behaviour_refuses_a_layer_it_does_not_know(agent):
    agent.backbone.insert(1, nn.LayerNorm(16))
    with pytest.raises(NotImplementedError, match="LayerNorm"):
        agent.behaviour()


def test_evaluate_actions_equals_torch_distributions(agent, action_space):
    obs = torch.as_tensor(OBS)
    distributions, values = reference.distributions(agent, action_space, obs)
    actions = torch.stack([distribution.sample() for distribution in distributions], -1)
    expected = reference.evaluate_actions(agent, action_space, obs, actions)
    for ours, theirs in zip(agent.evaluate_actions(obs, actions), expected, strict=True):
        assert ours.shape == (len(OBS),)
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(values, agent.critic(agent.backbone(obs))[:, 0])


def test_evaluate_actions_equals_scipy(agent, action_space):
    with torch.no_grad():
        outputs = agent(torch.as_tensor(OBS))[0].double().numpy()
        if isinstance(action_space, Box):
            policy = scipy.stats.norm(outputs, np.exp(agent.log_std.numpy()))
            actions = policy.rvs(random_state=3)
            logprobs, entropies = policy.logpdf(actions), policy.entropy()
        else:
            actions = np.random.default_rng(3).integers(action_space.nvec, size=(len(OBS), 3))
            parts = [scipy.special.softmax(outputs[:, k, :n], -1) for k, n in enumerate(action_space.nvec)]
            logprobs = np.stack([np.log(part[range(len(OBS)), actions[:, k]]) for k, part in enumerate(parts)], -1)
            entropies = np.stack([scipy.stats.entropy(part, axis=-1) for part in parts], -1)
        ours = agent.evaluate_actions(torch.as_tensor(OBS), torch.as_tensor(actions))[:2]
    np.testing.assert_allclose(ours[0], logprobs.sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[1], entropies.sum(-1), rtol=1e-4, atol=1e-4)


def test_samples_follow_the_distribution(agent, action_space):
    normalise, act = agent.behaviour()
    inputs = normalise(OBS[0])
    noise = agent.sample_noise(np.random.default_rng(4), 20_000)
    samples = np.stack([act(inputs, one) for one in noise])
    with torch.no_grad():
        parts, _ = reference.distributions(agent, action_space, torch.as_tensor(inputs[None]))
    # A sound sampler is under 0.001 for one seed in a thousand; this seed is fixed.
    if isinstance(action_space, Box):
        for k, part in enumerate(parts):
            assert scipy.stats.kstest(samples[:, k], "norm", (part.mean.item(), part.stddev.item())).pvalue > 0.001
            for other in range(k):
                assert scipy.stats.pearsonr(samples[:, k], samples[:, other]).pvalue > 0.001
    else:
        joint = np.einsum("i,j,k->ijk", *(part.probs[0].double().numpy() for part in parts)).ravel()
        counts = np.bincount(np.ravel_multi_index(samples.T, action_space.nvec), minlength=joint.size)
        assert scipy.stats.chisquare(counts, joint / joint.sum() * len(samples)).pvalue > 0.001


def test_fresh_agent_is_close_to_uniform_and_centred(script, action_space):
    torch.manual_seed(0)
    distributions, values = reference.distributions(
        script.ActorCritic(3, action_space, 64), action_space, torch.as_tensor(OBS)
    )
    for distribution in distributions:
        spread = (
            distribution.mean
            if isinstance(action_space, Box)
            else distribution.probs - 1 / distribution.probs[0].numel()
        )
        assert spread.abs().max() < 0.05
    assert values.std() > 0.1
