import dataclasses
import itertools

import numpy as np
import pytest
import torch
from conftest import Player

# Short rollouts and a high learning rate: these environments have one or two states.
QUICK = {"total_timesteps": 3072, "num_minibatches": 2, "learning_rate": 5e-3, "hidden_size": 64}
DISCOUNT = {"gamma": 0.9, "gae_lambda": 0.9}


@pytest.fixture
def trained(script, probe, tiny):
    """Train on a probe environment; returns the agent."""

    def trained(name, **flags):
        steps = {"num_steps": 16, "num_envs": 8} if hasattr(script.Args, "num_envs") else {"num_steps": 128}
        return script.train(tiny(env_id=probe(name), **QUICK | DISCOUNT | steps | flags))[0]

    return trained


def values_of(agent, *observations):
    normalise, _ = agent.behaviour()
    with torch.no_grad():
        _, values = agent(torch.as_tensor(normalise(np.array(observations, np.float32))))
    mean, std = agent.return_stats.moments()
    return values.numpy() * std + mean


@pytest.mark.parametrize(
    "name, observations, values, norm_value",
    [
        ("OneStep", [[1]], [1], True),
        ("TwoSteps", [[1, 0], [0, 1]], [0.9, 1], True),
        ("Sign", [[1], [-1]], [1, -1], True),
        ("Endless", [[1]], [1 / (1 - 0.9)], True),
        ("Truncated", [[1]], [1 / (1 - 0.9)], True),
        ("Truncated", [[1]], [1 / (1 - 0.9)], False),
    ],
)
def test_values_become_the_known_ones(trained, name, observations, values, norm_value):
    """A truncated episode counts as one that goes on: with its last step taken for a terminal one, 10 would be 2.6."""
    agent = trained(name, norm_value=norm_value)
    np.testing.assert_allclose(values_of(agent, *observations), values, rtol=0.05)


def test_policy_finds_the_best_action(script, trained, probe):
    player = Player(script, trained("Match"), probe("Match"))
    player.play(40, rng=None)
    observations, actions, rewards = zip(*itertools.chain(*player.logs), strict=True)
    assert len(np.unique(observations)) == len(np.unique(actions)) == 2
    assert min(rewards) > 0.96  # an action of the Box is off by 0.2 at most, where the bounds are 4 apart


def test_learns_a_real_environment(script, family, tmp_path):
    env_id, threshold, flags = {
        "Discrete": ("CartPole-v1", 475, {}),
        "Box": ("Pendulum-v1", -400, {"gamma": 0.95, "norm_obs": True, "ent_coef": 0.0}),
    }[family]
    args = script.Args(env_id=env_id, total_timesteps=30_000, log_dir=str(tmp_path), eval_episodes=0, **flags)
    agent, _ = script.train(args)
    assert script.evaluate(agent, dataclasses.replace(args, eval_episodes=20), tmp_path) >= threshold
