"""Known answers: values of tiny environments, the best action, and two real environments."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import Player, discrete_cases, make_envs, rollout_size
from probe_envs import Table

QUICK = {
    "total_timesteps": 8192,
    "num_minibatches": 2,
    "update_epochs": 5,
    "learning_rate": 5e-3,
    "gamma": 0.9,
    "gae_lambda": 0.9,
}


@pytest.fixture
def trained(script, probe, tiny):
    def trained(name, **flags):
        size = rollout_size(script, 16, 8)
        return script.train(tiny(env_id=probe(name), hidden_size=64, **QUICK | size | flags))

    return trained


@pytest.mark.parametrize(
    "name, observations, values, norm_value, tolerance",
    [
        ("OneStep", [[1]], [1], True, 0.02),
        ("TwoSteps", [[1, 0], [0, 1]], [0.9, 1], True, 0.02),
        ("Sign", [[1], [-1]], [1, -1], True, 0.1),
        ("Endless", [[1]], [1 / (1 - 0.9)], True, 0.02),
        ("Truncated", [[1]], [1 / (1 - 0.9)], True, 0.02),
        ("Truncated", [[1]], [1 / (1 - 0.9)], False, 0.02),
    ],
)
def test_values_become_the_known_ones(trained, name, observations, values, norm_value, tolerance):
    """A truncated episode counts as one that goes on: with its last step taken for a terminal one, 10 would be 2.6."""
    agent = trained(name, norm_value=norm_value)
    with torch.no_grad():
        learned = agent(torch.tensor(observations, dtype=torch.float32))[1]
    np.testing.assert_allclose(learned, values, rtol=tolerance)


@pytest.mark.parametrize("name, norm_obs", [("Match", False), ("FarMatch", True)])
def test_policy_finds_the_best_action(script, trained, probe, name, norm_obs):
    player = Player(script, trained(name, norm_obs=norm_obs), probe(name))
    rollout, transitions, _ = player.play(40, rng=None)  # greedily
    actions = [action for log in player.logs for _, action, _ in log]
    assert len(np.unique(np.round(actions, 4))) == 2
    assert transitions["rewards"][rollout["valid"]].min() > 0.96


def test_learns_a_real_environment(script, family, tmp_path):
    env_id, threshold, flags = {
        "Discrete": ("CartPole-v1", 475, {"total_timesteps": 30_000}),
        "Box": ("Pendulum-v1", -400, {"total_timesteps": 40_000, "gamma": 0.95}),
    }[family]
    args = script.Args(env_id=env_id, log_dir=str(tmp_path), eval_episodes=0, **flags)
    agent = script.train(args)
    args = dataclasses.replace(args, eval_episodes=20)
    assert script.evaluate(agent, make_envs(script, args), args) >= threshold


def optimal_values(gamma):
    """Of each state of the Table, by value iteration."""
    values = np.zeros(6)
    for _ in range(1000):
        values = (Table.REWARDS + gamma * Table.TRANSITIONS @ values).max(1)
    return values


@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
@discrete_cases
def test_the_policy_of_a_table_is_the_optimal_one_at_every_scale_of_rewards(script, tiny, scale):
    """Within 2 percent, by the Bellman equation of the greedy policy."""
    flags = {"total_timesteps": 12288, "num_minibatches": 4, "learning_rate": 2e-3, "gamma": 0.9, "hidden_size": 32}
    agent = script.train(tiny(env_id=f"probe_envs:Table{scale:g}-v0", **rollout_size(script, 64, 8), **flags))
    with torch.no_grad():
        logits, values = agent(torch.eye(6))
    actions = logits.argmax(1).numpy()
    transitions = Table.TRANSITIONS[range(6), actions]
    rewards = Table.REWARDS[range(6), actions]
    reached = np.linalg.solve(np.eye(6) - 0.9 * transitions, rewards)
    optimal = optimal_values(0.9)
    np.testing.assert_allclose(reached, optimal, rtol=0.02)
    np.testing.assert_allclose(values / scale, optimal, rtol=0.1)
