import copy
import re

import numpy as np
import pytest
import reference
import torch
from conftest import assert_same, box_cases, discrete_cases, once_per_script, vector_script


@pytest.fixture
def batch(script, agent, player):
    """A rollout with its advantages and returns, without rows of a reset."""
    rollout, transitions, _ = player().play(96, np.random.default_rng(5))
    advantages, returns = (x[rollout["valid"]] for x in script.compute_gae(**transitions, gamma=0.9, gae_lambda=0.9))
    agent.update_return_stats(returns, 1)
    return rollout, advantages, returns


@pytest.fixture
def update(script, agent, batch):
    """Run ppo_update on the batch with other flags, log-probabilities or advantages; returns its metrics."""

    def update(logprobs=None, advantages=None, returns=None, fraction=1, **flags):
        rollout, own_advantages, own_returns = batch
        rollout = rollout if logprobs is None else rollout | {"logprobs": logprobs}
        advantages = own_advantages if advantages is None else advantages
        returns = own_returns if returns is None else returns
        args = script.Args(**flags)
        optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
        rng = np.random.default_rng(7)
        return script.ppo_update(agent, optimizer, rollout, advantages, returns, args, rng, fraction)

    return update


@pytest.fixture
def evaluated(agent, monkeypatch):
    """The list of (obs, log-probabilities) of the minibatches that the agent evaluates."""
    calls = []
    forward = agent.forward
    log_prob_and_entropy = agent.log_prob_and_entropy

    def recording_forward(obs):
        calls.append([obs.numpy().copy()])
        return forward(obs)

    def recording(outputs, actions):
        results = log_prob_and_entropy(outputs, actions)
        calls[-1].append(results[0].detach().numpy().copy())
        return results

    monkeypatch.setattr(agent, "forward", recording_forward)
    monkeypatch.setattr(agent, "log_prob_and_entropy", recording)
    return calls


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"norm_adv": False, "clip_coef": 0.1, "max_grad_norm": 100.0},
        {"ent_coef": 0.3, "vf_coef": 2.0, "max_grad_norm": 0.05, "clip_coef": 0.4},
    ],
)
def test_equals_a_textbook_update(agent, script, batch, update, flags):
    """Log-probabilities of the old policy are spread, so that many ratios lie out of the clip range on both sides."""
    rollout, advantages, returns = batch
    spread = np.random.default_rng(8).normal(0, 0.5, returns.shape)
    logprobs = rollout["logprobs"] + torch.as_tensor(spread, dtype=torch.float32)
    flags = {"num_minibatches": 4, "update_epochs": 3, "ent_coef": 0.01} | flags
    twin = copy.deepcopy(agent)
    before = copy.deepcopy(agent.state_dict())
    rows = rollout | {"logprobs": logprobs}
    expected = reference.ppo_update(twin, rows, advantages, returns, script.Args(**flags), np.random.default_rng(7))
    metrics = update(logprobs, **flags)
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert metrics["losses/clipfrac"] > 0.3
    torch.testing.assert_close(agent.state_dict(), twin.state_dict(), rtol=0, atol=1e-4)
    assert (agent.backbone[0].weight - before["backbone.0.weight"]).abs().max() > 1e-3


def test_a_fraction_scales_the_entropy_bonus_alone(agent, update):
    before = copy.deepcopy(agent.state_dict())
    weights = []
    for flags in ({"ent_coef": 0.2, "fraction": 0.5}, {"ent_coef": 0.1}, {"ent_coef": 0.2}):
        agent.load_state_dict(before)
        update(**flags)
        weights.append(copy.deepcopy(agent.state_dict()))
    assert_same(weights[0], weights[1])
    assert (weights[1]["actor.weight"] - weights[2]["actor.weight"]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "log_ratio, advantage, moves",
    [(1, 1, False), (-1, -1, False), (1, -1, True), (-1, 1, True), (0.1, 1, True), (-0.1, -1, True)],
)
def test_gradient_ends_where_the_ratio_has_left_the_clip_range(agent, batch, update, log_ratio, advantage, moves):
    rollout, advantages, _ = batch
    before = copy.deepcopy(agent.state_dict())
    flags = {"norm_adv": False, "ent_coef": 0.0, "vf_coef": 0.0, "update_epochs": 1, "num_minibatches": 1}
    metrics = update(rollout["logprobs"] - log_ratio, np.full_like(advantages, advantage), **flags)
    if moves:
        assert metrics["losses/grad_norm"] > 1e-3
        assert any((agent.state_dict()[name] != value).any() for name, value in before.items())
    else:
        assert metrics["losses/grad_norm"] == 0
        assert_same(agent.state_dict(), before)


def test_each_epoch_takes_every_row_once_in_a_new_order(batch, update, evaluated):
    update(num_minibatches=7, update_epochs=3)
    rows = batch[0]["obs"].numpy()
    sizes = [len(obs) for obs, _ in evaluated]
    assert len(sizes) == 21
    assert set(sizes) <= {len(rows) // 7, len(rows) // 7 + 1}
    epochs = [np.concatenate([obs for obs, _ in evaluated[i : i + 7]]) for i in (0, 7, 14)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), np.sort(rows[:, 0]))
    assert len({epoch.tobytes() for epoch in [rows, *epochs]}) == 4


def test_target_kl_ends_the_update_after_the_first_epoch_above_it(batch, update, evaluated):
    target = 0.02
    metrics = update(target_kl=target, num_minibatches=2, update_epochs=20, learning_rate=3e-3)
    rows = (batch[0][name].numpy() for name in ("obs", "logprobs"))
    old = {obs.tobytes(): logprob for obs, logprob in zip(*rows, strict=True)}
    logratios = [logprobs - np.array([old[row.tobytes()] for row in obs]) for obs, logprobs in evaluated]
    epochs = [np.concatenate(logratios[i : i + 2]) for i in range(0, len(logratios), 2)]
    divergences = [np.mean(np.exp(epoch) - 1 - epoch) for epoch in epochs]
    assert 1 < len(divergences) < 20
    assert max(divergences[:-1]) <= target < divergences[-1]
    assert metrics["losses/approx_kl"] == pytest.approx(np.mean(divergences), rel=1e-3)


def test_a_gradient_that_is_nan_changes_nothing(agent, batch, update):
    before = copy.deepcopy(agent.state_dict())
    batch[0]["obs"] *= 7  # the largest was near 1
    with pytest.raises(FloatingPointError, match="try --norm-obs or lower --learning-rate") as raised:
        update(advantages=np.full_like(batch[1], np.nan))
    assert_same(agent.state_dict(), before)
    sizes = re.search(r"\(largest observation, reward: (\S+), (\S+)\)$", str(raised.value)).groups()
    largest = [np.abs(np.asarray(batch[0][name])).max() for name in ("obs", "rewards")]
    assert [*map(float, sizes)] == pytest.approx(largest, rel=0.05)


def test_equal_returns_leave_the_metrics_finite(batch, update):
    """The explained variance is divided by their variance."""
    metrics = update(returns=np.full_like(batch[2], 0.5))
    assert np.isfinite([*metrics.values()]).all()


def test_the_agent_acts_in_evaluation_mode_and_learns_in_training_mode(agent, update):
    assert not agent.training
    update()
    assert agent.training


@vector_script
def test_target_kl_is_compared_with_the_mean_over_processes(script, update, evaluated, monkeypatch):
    """Else some of them would go on alone. A KL that the others bring down ends nothing."""
    monkeypatch.setattr(script, "average", lambda tensor: 0 * tensor)
    update(target_kl=1e-9, num_minibatches=1, update_epochs=5)
    assert len(evaluated) == 5


def test_a_density_of_0_is_one_line(agent, update, batch, monkeypatch):
    """As of an action at the end of a bounded distribution."""
    log_prob = agent.log_prob_and_entropy
    monkeypatch.setattr(
        agent, "log_prob_and_entropy", lambda *args: (log_prob(*args)[0] - torch.inf, log_prob(*args)[1])
    )
    with pytest.raises(FloatingPointError, match=r"NaN or Inf in the loss: .*check distribution"):
        update(logprobs=torch.full_like(batch[0]["logprobs"], -torch.inf))


@discrete_cases
def test_a_loss_that_is_nan_stops_although_its_gradient_is_finite(agent, update, monkeypatch):
    """As by a mask that allows no action: the gradient of masked_fill is 0 where the loss is NaN."""
    forward = agent.forward

    def masked(obs):
        outputs, values = forward(obs)
        none = torch.arange(len(obs))[:, None] == 0
        return outputs.masked_fill(none, -torch.inf), values

    monkeypatch.setattr(agent, "forward", masked)
    with pytest.raises(FloatingPointError, match="NaN or Inf in the loss"):
        update()


@once_per_script
def test_the_policy_that_acted_is_the_one_that_the_update_starts_from(script, tiny, record):
    """Statistics of observations move after the update: at its start all ratios are 1."""

    def ratios_before(agent, optimizer, rollout, *_):
        outputs, _ = agent(rollout["obs"])
        logprobs, _ = agent.log_prob_and_entropy(outputs, rollout["actions"])
        return (logprobs - rollout["logprobs"]).exp().detach().numpy()

    ratios = record("ppo_update", ratios_before)
    script.train(tiny(norm_obs=True, learning_rate=0.01))
    assert len(ratios) == 4
    np.testing.assert_allclose(np.concatenate(ratios), 1, rtol=1e-5)


@box_cases
def test_noise_falls_no_faster_than_in_a_line_to_0_at_the_end(script, tiny, monkeypatch, record):
    """Whatever an update does to it; it may rise."""
    stds = record("collect_rollout", lambda env, agent, *_: agent.log_std.detach().exp().numpy())
    updates = iter([-20, -20, 0, -20])

    def changed(agent, *rest):
        agent.log_std.data.fill_(next(updates))
        return {}

    monkeypatch.setattr(script, "ppo_update", changed)
    agent = script.train(tiny(log_std_init=-1, anneal_lr=False))  # a whole number, as one writes in Python
    stds.append(agent.log_std.detach().exp().numpy())
    first = np.exp(-1)
    expected = [first, first, 0.75 * first, 1, 0.25 * first]  # the share that was left before each update
    np.testing.assert_allclose(stds, np.broadcast_to(np.reshape(expected, (5, 1)), np.shape(stds)), rtol=1e-6)


@box_cases
def test_noise_that_is_no_parameter_stays(script, tiny, monkeypatch):
    """As in a copy with nn.Buffer in place of nn.Parameter."""
    agent_class = script.ActorCritic

    def fixed(*args):
        agent = agent_class(*args)
        del agent.log_std
        agent.log_std = torch.nn.Buffer(torch.full(args[1].shape, -3.0))
        return agent

    monkeypatch.setattr(script, "ActorCritic", fixed)
    assert (script.train(tiny()).log_std == -3).all()
