"""Spaces drawn by hypothesis: two iterations with finite weights, or one line before the training."""

import re

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
from conftest import SCRIPTS, Player, box_cases, column, discrete_script, make_agent, make_envs, once_per_script
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
INTEGERS = Box(0, 5, (2,), np.int64)
ACTIONS = st.one_of(FLOATS, CHOICES, st.just(INTEGERS))
TAKEN = {
    "ppo_discrete": (Discrete, MultiDiscrete, MultiBinary),
    "ppo_continuous": Box,
    "ppo_vector": (Discrete, Box),
}
REWARDS = st.sampled_from([int, np.float32, np.float64, lambda reward: np.array(reward)])


class Odd(probe_envs.Recorder):
    """A Recorder that gives rewards of odd types and an info full of junk. Each episode may end at once or never."""

    def __init__(self, action_space, observation_space, reward_type, ends):
        super().__init__(action_space, observation_space)
        self.reward_type = reward_type
        self.ends = ends

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        if self.ends != "sometimes":
            terminated = self.ends == "always"
            truncated = False
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
        except ValueError as error:
            assert str(error).startswith("Odd-v0")
            assert str(error).count("\n") == 0
            assert not fits(action_space)
        else:
            assert all(value.isfinite().all() for value in agent.state_dict().values())
            assert fits(action_space)

    def fits(space):
        return isinstance(space, TAKEN[script.__name__]) and space != INTEGERS

    runs = []
    check()


@discrete_script
def test_an_environment_may_change_its_action_in_place(script, tiny):
    """It refuses actions outside its space, which a changed table of actions would give."""
    script.train(tiny(env_id="probe_envs:Changing-v0"))


@box_cases
def test_actions_are_scaled_to_finite_bounds(script):
    """-1, 0 and 0.5 are the lower bound, the middle and three quarters of the way up; 9 is the upper bound.

    With one bound, 0 is the allowed value nearest 0.
    """
    for name, expected in {
        "ActAsymmetric": [[-0.1, 2], [0.3, 3.5], [0.5, 4.25], [0.7, 5]],
        "ActUnbounded": [[-1, -1], [0, 0], [0.5, 0.5], [9, 9]],
        "ActHuge": [[-1, -1], [0, 0], [0.5, 0.5], [9, 9]],
        "ActLowerBound": [[0, 0], [0, 0], [0.5, 0.5], [9, 9]],
        "ActHalfHuge": [[0, 0], [0, 0], [0.5, 0.5], [9, 9]],
        "ActMixed": [[0, 100], [0, 150], [0.5, 175], [9, 200]],
        "ActAbove": [[10, 10], [10, 10], [10.5, 10.5], [19, 19]],
        "ActBelow": [[-11, -11], [-10, -10], [-10, -10], [-10, -10]],
        "ActFloat16": [[-60000, 28000], [0, 44000], [30000, 52000], [60000, 60000]],
    }.items():
        env = make_envs(script, script.Args(env_id=f"probe_envs:{name}-v0"))
        actions = [np.ravel(env.func(np.full(2, action, np.float32))) for action in (-1, 0, 0.5, 9)]
        np.testing.assert_allclose(actions, expected, rtol=1e-6)


@discrete_script
def test_any_number_of_combinations_trains(tiny, script):
    script.train(tiny(env_id="probe_envs:ManyChoices-v0"))


@discrete_script
@pytest.mark.parametrize(
    "name", ["MultiDiscrete", "MultiDiscrete2D", "MultiDiscreteStart", "MultiBinary", "MultiBinary2D"]
)
def test_every_combination_can_be_chosen_and_no_other(script, name):
    env = script.make_env(script.Args(env_id=f"probe_envs:Act{name}-v0"))
    space = env.get_wrapper_attr("unwrapped").action_space
    sizes = np.full(space.shape, getattr(space, "nvec", 2))
    assert (env.action_space.nvec == sizes).all()
    chosen = set()
    for choice in np.ndindex(*sizes.flat):
        action = env.func(np.reshape(choice, space.shape))
        assert action in space
        chosen.add(tuple(action.flat))
    assert len(chosen) == sizes.prod()


def environments():
    """The newest version of every environment that this installation can make, with its kind of actions."""
    newest = {}
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.version or 0):
        if getattr(spec.entry_point, "__module__", None) != "probe_envs":
            newest[spec.namespace, spec.name] = spec.id
    return sorted(newest.values())


@pytest.mark.filterwarnings("ignore")
@once_per_script
@pytest.mark.parametrize("env_id", environments())
def test_gymnasium_environment_is_trained_or_refused(script, tiny, env_id):
    args = tiny(env_id=env_id, total_timesteps=8, num_steps=8, update_epochs=1)
    try:
        with gym.make(env_id) as env:
            family = type(env.action_space).__name__
    except (gym.error.Error, ImportError):  # an extra that is not installed
        family = "nothing"
    if family in SCRIPTS[script.__name__]:
        agent = script.train(args)
        assert all(parameter.isfinite().all() for parameter in agent.parameters())
    else:
        with pytest.raises((ValueError, ImportError), match=re.escape(env_id) + "|pip install"):
            script.train(args)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", probe_envs.OBSERVATION_SPACES)
def test_observations_of_any_space_are_flattened_in_its_order(script, probe, name):
    player = Player(script, None, probe(name))
    player.agent = make_agent(script, player.env, player.args)
    rollout, transitions, _ = player.play(20, np.random.default_rng(0))
    for i, log in enumerate(player.logs):
        expected = [gym.spaces.flatten(probe_envs.OBSERVATION_SPACES[name], obs) for obs, *_ in log]
        np.testing.assert_allclose(column(rollout, transitions, i)["obs"], expected, rtol=1e-6)


@pytest.fixture
def observe(script, probe, monkeypatch):
    """The first observation when a wrapper of one's own, which keeps the space, changes each by a function."""
    wrappers = gym.wrappers.vector if hasattr(script, "make_envs") else gym.wrappers
    record = wrappers.RecordEpisodeStatistics

    def observe(name, change):
        def wrap(env, **names):
            return wrappers.TransformObservation(record(env, **names), change, observation_space=env.observation_space)

        monkeypatch.setattr(wrappers, "RecordEpisodeStatistics", wrap)
        obs, _ = make_envs(script, script.Args(env_id=probe(name))).reset(seed=1)
        return obs

    return observe


@pytest.mark.filterwarnings("ignore")
def test_a_wrapper_may_scale_bytes_and_keep_their_space(observe):
    """As many do by obs / 255: a cast to the space's dtype would make each 0."""
    pixels = observe("ObsImage", lambda obs: obs)
    np.testing.assert_array_equal(observe("ObsImage", lambda obs: obs / 255), pixels / 255)
    assert pixels.max() > 1


@pytest.mark.filterwarnings("ignore")
def test_one_number_in_place_of_an_observation_is_not_spread_over_it(observe):
    with pytest.raises(ValueError, match="cannot reshape array of size 1"):
        observe("Recorder", lambda obs: obs[..., :1])


@pytest.mark.filterwarnings("ignore")
def test_actions_fill_the_space(script, family):
    """The environment itself asserts that they lie in it."""
    for name, space in probe_envs.ACTION_SPACES[family].items():
        if script.__name__ == "ppo_vector" and "Multi" in name:
            continue
        flags = {"hidden_size": 8} | ({"log_std_init": 1.0} if family == "Box" else {})
        player = Player(script, None, f"probe_envs:{name}-v0", 2, **flags)
        player.agent = make_agent(script, player.env, player.args)
        player.play(300, np.random.default_rng(0))
        for log in player.logs:
            actions = np.array([action for _, action, *_ in log]).reshape(len(log), -1)
            if name == "ActMixed":
                assert actions[:, 0].min() == 0 and actions[:, 1].min() == 100 and actions[:, 1].max() == 200
            elif family == "Box":
                low = space.low.ravel()
                high = space.high.ravel()
                to_low = abs(low) < 1e30
                to_high = abs(high) < 1e30  # others have no end
                np.testing.assert_array_equal(actions.min(0)[to_low], low[to_low])
                np.testing.assert_array_equal(actions.max(0)[to_high], high[to_high])
            else:
                seen = {action.tobytes() for action in actions}
                choices = getattr(space, "nvec", [2] * actions.shape[1] if "Binary" in name else getattr(space, "n", 0))
                assert len(seen) >= 0.8 * np.prod(choices)
