"""Spaces drawn by hypothesis: two iterations with finite weights, or one line before the training."""

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
from conftest import once_per_script
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
BOUNDS = st.sampled_from([(-1, 1), (-0.3, 7), (-np.inf, np.inf), (0, np.inf), (-np.inf, 2)])
FLOATS = st.builds(
    lambda bounds, shape, dtype: Box(*bounds, shape, dtype), BOUNDS, SHAPES, st.sampled_from([np.float32, np.float64])
)
CHOICES = st.one_of(
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 4), st.integers(-3, 3)),
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(MultiDiscrete),
    st.integers(1, 3).map(MultiBinary),
)
LEAVES = st.one_of(FLOATS, CHOICES, SHAPES.map(lambda shape: Box(0, 255, shape, np.uint8)), st.just(Text(3)))
OBSERVATIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(Tuple),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(Dict),
    ),
    max_leaves=4,
)
ACTIONS = st.one_of(FLOATS, CHOICES, st.just(Box(0, 5, (2,), np.int64)))
REWARDS = st.sampled_from([int, np.float32, np.float64, lambda reward: np.array(reward)])


class Odd(probe_envs.Plain):
    """A Plain that gives rewards of odd types and an info full of junk, and may end each episode at once or never."""

    def __init__(self, action_space, observation_space, reward_type, ends):
        super().__init__(action_space, observation_space)
        self.reward_type, self.ends = reward_type, ends

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        if self.ends != "sometimes":
            terminated, truncated = self.ends == "always", False
        return obs, self.reward_type(reward), terminated, truncated, {"junk": object(), "more": [1, "a"], "n": None}


@pytest.mark.filterwarnings("ignore")
@once_per_script
def test_any_spaces_train_or_are_refused(script, tiny):
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(ACTIONS, OBSERVATIONS, REWARDS, st.sampled_from(["always", "never", "sometimes"]), st.booleans())
    def check(action_space, observation_space, reward_type, ends, norm_obs):
        spaces = {"action_space": action_space, "observation_space": observation_space}
        gym.registry.pop("Odd-v0", None)
        gym.register("Odd-v0", Odd, kwargs=spaces | {"reward_type": reward_type, "ends": ends})
        runs.append(spaces)
        flags = {"total_timesteps": 48 if norm_obs else 32, "norm_obs": norm_obs, "hidden_size": 4, "update_epochs": 1}
        try:
            agent = script.train(tiny(env_id="Odd-v0", log_dir=f"runs{len(runs)}", **flags))
        except SystemExit as stop:
            assert str(stop).startswith("error: Odd-v0")
            assert str(stop).count("\n") == 0
        else:
            assert all(value.isfinite().all() for value in agent.state_dict().values())
            trained.append(spaces)

    runs, trained = [], []
    check()
    assert len(trained) >= 5
