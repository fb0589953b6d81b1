"""Every environment that is installed, and every kind of space, is trained or refused in words that help."""

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
import torch
from conftest import CASES, SCRIPTS, Player, column, once_per_script
from gymnasium.spaces import Box, Discrete, MultiBinary, flatten


def newest_ids():
    """The newest version of every environment that Gymnasium knows."""
    newest = {}
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.version or 0):
        if getattr(spec.entry_point, "__module__", None) != "probe_envs":
            newest[spec.namespace, spec.name] = spec.id
    return sorted(newest.values())


def cases_with(spaces_of):
    """(case, name) for every name that spaces_of gives for the family of a case."""
    return [pytest.param(case, name, id=f"{'-'.join(case)}-{name}") for case in CASES for name in spaces_of(case[1])]


def bounds(space):
    """Lowest and highest action, flat."""
    if isinstance(space, Box):
        return space.low.ravel(), space.high.ravel()
    if isinstance(space, MultiBinary):
        return np.zeros(space.shape).ravel(), np.ones(space.shape).ravel()
    choices = space.n if isinstance(space, Discrete) else space.nvec
    return np.ravel(space.start), np.ravel(space.start + choices - 1)


@pytest.mark.filterwarnings("ignore")
@once_per_script
@pytest.mark.parametrize("env_id", newest_ids())
def test_gymnasium_environment_is_trained_or_refused(script, tiny, env_id):
    args = tiny(env_id=env_id, total_timesteps=8, num_steps=8, update_epochs=1)
    try:
        with gym.make(env_id) as env:
            family = "Box" if isinstance(env.action_space, Box) else "Discrete"
    except (gym.error.Error, ImportError) as error:  # an extra that is not installed
        with pytest.raises(script.BadInput) as refusal:
            script.train(args)
        assert str(error) in str(refusal.value)
        return
    if family in SCRIPTS[script.__name__]:
        agent, _ = script.train(args)
        assert all(parameter.isfinite().all() for parameter in agent.parameters())
    else:
        (fitting,) = (name for name, families in SCRIPTS.items() if families == [family])
        with pytest.raises(script.BadInput, match=rf"use {fitting}\.py"):
            script.train(args)


@pytest.mark.parametrize("name", probe_envs.OBSERVATION_SPACES)
def test_observations_of_any_space_are_flattened(script, probe, tiny, name):
    env = script.make_env(probe(name))
    for obs in (env.reset(seed=0)[0], env.step(env.action_space.sample())[0]):
        assert obs.shape == env.observation_space.shape
        assert obs.ndim == 1
    np.testing.assert_array_equal(obs, flatten(probe_envs.OBSERVATION_SPACES[name], env.unwrapped.obs))
    script.train(tiny(env_id=probe(name)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case, name", cases_with(probe_envs.ACTION_SPACES.get), indirect=["case"])
def test_actions_fill_the_space(script, name):
    """The environment itself asserts that they lie in it."""
    space, env_id = gym.spec(f"{name}-v0").kwargs["action_space"], f"probe_envs:{name}-v0"
    agent = script.ActorCritic(3, script.make_env(env_id).action_space, 8)
    if isinstance(space, Box):
        torch.nn.init.constant_(agent.log_std, 1.0)
    player = Player(script, agent, env_id)
    rollout, _ = player.play(200, np.random.default_rng(0))
    low, high = bounds(space)
    for i, log in enumerate(player.logs):
        actions = np.array([action for _, action, *_ in log]).reshape(len(log), -1)
        np.testing.assert_array_equal(actions.min(0)[np.isfinite(low)], low[np.isfinite(low)])
        np.testing.assert_array_equal(actions.max(0)[np.isfinite(high)], high[np.isfinite(high)])
        if isinstance(space, Box):
            sampled = column(rollout, i)["actions"]
            bounded = np.isfinite(low) & np.isfinite(high)
            with np.errstate(invalid="ignore"):
                scaled = np.where(bounded, low + (sampled + 1) / 2 * (high - low), sampled)
            np.testing.assert_allclose(actions, np.clip(scaled, low, high), rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal([len(np.unique(choices)) for choices in actions.T], high - low + 1)


def test_environment_without_rendering_is_trained(script, probe, tiny):
    script.train(tiny(env_id=probe("Plain"), eval_episodes=1))
