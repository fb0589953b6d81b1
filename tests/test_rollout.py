"""collect_rollout: each row is one transition of the environment, and an episode goes on in the next rollout."""

import contextlib
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from conftest import OBS_SPACE, assert_same, box_cases, column, vector_cases
from probe_envs import NativeRecorder, Recorder
from torch import nn


def as_arrays(log):
    names = ("obs", "actions", "rewards", "next_obs", "terminated", "truncated")
    return dict(zip(names, map(np.array, zip(*log, strict=True)), strict=True))


NATIVE = {"name": "NativeRecorder", "vectorization_mode": None}


def assert_rows_are_the_transitions(played, agent, family):
    """Values at the end of an episode are those of its last observation, which the log has, not of the reset."""
    rollout, transitions, episodes = played.play(300, np.random.default_rng(5))
    np.testing.assert_array_equal(rollout["rewards"], transitions["rewards"][rollout["valid"]])
    ends = 0
    expected_episodes = []
    for i, log in enumerate(played.logs):
        rows = column(rollout, transitions, i)
        log = as_arrays(log)
        for name in ("obs", "rewards", "terminated", "truncated"):
            np.testing.assert_allclose(rows[name], log[name], rtol=1e-6)
        if family == "Box":
            assert abs(rows["actions"]).max() > 1  # the sample is stored, not what clipping left of it
            np.testing.assert_allclose(np.clip(rows["actions"], -1, 1), log["actions"], rtol=1e-6)
        else:
            np.testing.assert_array_equal(rows["actions"], log["actions"] + 4)  # the space starts at -4
        with torch.no_grad():
            distribution, values = reference.policy(agent, torch.as_tensor(log["obs"]))
            logprobs = distribution.log_prob(torch.as_tensor(rows["actions"]))
            _, next_values = agent(torch.as_tensor(log["next_obs"]))
        for name, array in (("logprobs", logprobs), ("values", values), ("next_values", next_values)):
            np.testing.assert_allclose(rows[name], array, rtol=1e-4, atol=1e-5)
        done = np.flatnonzero(log["terminated"] | log["truncated"])
        ends += (log["terminated"] & log["truncated"]).sum()
        for start, end in zip([0, *(done[:-1] + 1)], done, strict=True):
            expected_episodes.append((log["rewards"][start : end + 1].sum(), end - start + 1))
    assert ends > 0
    np.testing.assert_allclose(sorted(episodes), sorted(expected_episodes), rtol=1e-4, atol=1e-4)


def test_rows_are_the_transitions_of_the_environment(player, agent, family):
    assert_rows_are_the_transitions(player(), agent, family)


@vector_cases
def test_rows_are_the_transitions_of_a_native_vector_environment(player, agent, family):
    assert_rows_are_the_transitions(player(**NATIVE), agent, family)


def test_the_episode_goes_on_in_the_next_rollout(player):
    played = player()
    rng = np.random.default_rng(0)
    seen = []
    episodes = []
    for num_steps in (50, 2, 10, 7, 3, 20):
        rollout, transitions, more = played.play(num_steps, rng)
        seen.append([column(rollout, transitions, i)["obs"] for i in range(len(played.logs))])
        episodes += more
    lengths = []
    for i, log in enumerate(played.logs):
        log = as_arrays(log)
        np.testing.assert_array_equal(np.concatenate([rows[i] for rows in seen]), log["obs"])
        done = log["terminated"] | log["truncated"]
        np.testing.assert_array_equal((log["next_obs"][:-1] == log["obs"][1:]).all(-1), ~done[:-1])
        lengths += np.diff(np.flatnonzero(done), prepend=-1).tolist()
    assert sorted(length for _, length in episodes) == sorted(lengths)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trouble", ["obs nan", "obs inf", "reward nan", "reward -inf", "reward -1e39"])
@pytest.mark.parametrize("step", [1, 13, 20])
def test_nan_and_inf_end_the_program(player, monkeypatch, trouble, step):
    monkeypatch.setattr("probe_envs.Trouble.steps", 0)
    monkeypatch.setenv("PROBE_TROUBLE", f"{step} {trouble}")
    with pytest.raises(ValueError, match="NaN, Inf"):
        player("Trouble").play(20, np.random.default_rng(5))


def skip_connection(self, obs):
    hidden = self.backbone(obs)
    return self.actor(hidden + self.backbone[:2](obs)), self.critic(hidden).squeeze(-1)


def scaled(self, obs):
    hidden = self.backbone(obs / 255)
    return self.actor(hidden), self.critic(hidden).squeeze(-1)


@pytest.mark.parametrize("forward", [skip_connection, scaled])
@pytest.mark.parametrize("fresh", [True, False])
def test_an_edit_to_forward_alone_is_refused(script, player, action_space, monkeypatch, forward, fresh):
    played = player()
    if fresh:
        played.agent = script.ActorCritic(OBS_SPACE, action_space, script.Args(hidden_size=16))
    played.play(100, np.random.default_rng(0))
    monkeypatch.setattr(script.ActorCritic, "forward", forward)
    with pytest.raises(ValueError, match=MISMATCH):
        played.play(100, np.random.default_rng(0))


MISMATCH = "edit numpy_actor like forward or pass --no-numpy-actor"


@pytest.mark.parametrize("mask", [-1e9, -np.inf])
@pytest.mark.parametrize("factor", [1, 1.05])
def test_a_mask_does_not_hide_a_difference(agent, player, monkeypatch, family, factor, mask):
    """Both put it in place of all outputs but one, which differs by factor."""
    mask = mask if family == "Discrete" else -1e9  # there is no Gaussian with an infinite mean

    def masked(outputs):
        outputs[..., 1:] = mask
        return outputs

    actor = agent.numpy_actor
    forward = agent.forward
    monkeypatch.setattr(agent, "numpy_actor", lambda obs, p: masked(factor * actor(obs, p)))
    monkeypatch.setattr(agent, "forward", lambda obs: (masked(1 * forward(obs)[0]), forward(obs)[1]))
    differ = pytest.raises(ValueError, match=MISMATCH)
    with differ if factor > 1 else contextlib.nullcontext():
        player().play(100, np.random.default_rng(0))


@pytest.mark.parametrize("difference", [1e-6, 1e-3])
def test_rounding_is_no_difference(agent, player, monkeypatch, difference):
    """Where outputs are near 0, it is large beside them."""
    nn.init.zeros_(agent.actor.weight)
    nn.init.zeros_(agent.actor.bias)
    actor = agent.numpy_actor
    monkeypatch.setattr(agent, "numpy_actor", lambda obs, p: actor(obs, p) + np.float32(difference))
    differ = pytest.raises(ValueError, match=MISMATCH)
    with differ if difference == 1e-3 else contextlib.nullcontext():
        player().play(100, np.random.default_rng(0))


@box_cases
def test_actions_of_too_few_dimensions_are_one_line(agent, player, monkeypatch):
    """They would be broadcast to all dimensions of the environment."""
    sample = agent.sample
    monkeypatch.setattr(agent, "sample", lambda outputs, rng: sample(outputs, rng)[..., :1])
    with pytest.raises(ValueError, match="actions must fit their space"):
        player().play(20, np.random.default_rng(0))


def test_weights_of_a_dtype_that_numpy_lacks_act_in_torch(agent, player):
    agent.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    rollout, _, _ = player(numpy_actor=False).play(20, np.random.default_rng(0))
    assert len(rollout["logprobs"]) > 0


@pytest.mark.parametrize("part", ["logprobs", "entropies", "values"])
@pytest.mark.parametrize("num_steps", [2, 20])
def test_a_forgotten_sum_or_squeeze_is_one_line(agent, player, monkeypatch, part, num_steps):
    """The loss would broadcast (B, 1) and (B,) to (B, B)."""
    forward = agent.forward
    log_prob = agent.log_prob_and_entropy
    if part == "values":
        monkeypatch.setattr(agent, "forward", lambda obs: (forward(obs)[0], forward(obs)[1][..., None]))
    else:
        column = ["logprobs", "entropies"].index(part)

        def wrong(*args):
            return [x[..., None] if i == column else x for i, x in enumerate(log_prob(*args))]

        monkeypatch.setattr(agent, "log_prob_and_entropy", wrong)
    with pytest.raises(ValueError, match=r"logprobs, entropies.* \(B,\)"):
        player().play(num_steps, np.random.default_rng(0))


BUFFER = np.zeros((), bool)


def in_buffer(flag):
    BUFFER[()] = flag
    return BUFFER


ODD_ENDS = {
    "array": lambda flag: np.array([flag]),
    "number": lambda flag: 3 * flag,
    "NumPy": np.bool_,
    "buffer": in_buffer,
}
ODD_REWARDS = {"fraction": Fraction, "array": lambda reward: np.array([reward]), "scalar": np.array}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("end, reward", [*((end, None) for end in ODD_ENDS), *((None, name) for name in ODD_REWARDS)])
def test_ends_and_rewards_of_any_type(player, monkeypatch, end, reward):
    """Each is what bool and float say of it."""
    _, expected, episodes = player().play(200, np.random.default_rng(0))
    step = Recorder.step
    end = ODD_ENDS.get(end, bool)
    reward = ODD_REWARDS.get(reward, float)

    def odd_step(self, action):
        obs, number, terminated, truncated, info = step(self, action)
        return obs, reward(number), end(terminated), truncated, info

    monkeypatch.setattr(Recorder, "step", odd_step)
    _, transitions, odd_episodes = player().play(200, np.random.default_rng(0))
    assert expected["terminated"].any()
    for name, array in expected.items():
        np.testing.assert_array_equal(transitions[name], array)
    assert odd_episodes == episodes


@pytest.mark.filterwarnings("ignore")
def test_an_environment_may_reuse_its_arrays(script, player, monkeypatch):
    """It writes the observations into one array. A vector environment of its own does so with the rewards, too."""
    vector = hasattr(script, "make_envs")
    kind = NativeRecorder if vector else Recorder
    own = NATIVE if vector else {}
    reset = kind.reset
    step = kind.step
    reused = {}

    def reuse(name, array):
        reused.setdefault(name, np.zeros_like(array))[:] = array
        return reused[name]

    def reset_in_place(self, **kwargs):
        obs, info = reset(self, **kwargs)
        return reuse("obs", obs), info

    def step_in_place(self, action):
        obs, reward, *rest = step(self, action)
        return reuse("obs", obs), reuse("reward", reward) if vector else reward, *rest

    expected = player(**own).play(100, np.random.default_rng(0))
    monkeypatch.setattr(kind, "reset", reset_in_place)
    monkeypatch.setattr(kind, "step", step_in_place)
    assert_same(player(**own).play(100, np.random.default_rng(0)), expected)


def test_a_bonus_is_added_to_integer_rewards(player):
    """As of a wrapper that gives 1 or -1: what fills an array like that of the rewards must not lose its fractions."""
    played = player()
    wrappers = gym.wrappers.vector if played.vector else gym.wrappers
    played.env = wrappers.TransformReward(played.env, lambda reward: np.sign(reward).astype(int))
    _, transitions, _ = played.play(50, np.random.default_rng(0))
    expected = transitions["rewards"] + 0.25
    transitions["rewards"] += 0.25
    np.testing.assert_array_equal(transitions["rewards"], expected)


@pytest.mark.parametrize("name", ["Size-6", "Size0", "Size4", "Size8", "MostlyZero"])
def test_numpy_and_torch_agree_at_every_size_of_observations(script, player, action_space, name):
    """Rounding errors are no difference. They grow with the outputs; those of observations of 0 are 0 here."""
    played = player(name)
    for seed in range(20):
        torch.manual_seed(seed)
        played.agent = script.ActorCritic(OBS_SPACE, action_space, script.Args())
        played.agent.actor.weight.data *= 1e6
        played.play(100, np.random.default_rng(0))


def test_without_numpy_the_agent_acts_by_forward_alone(player, agent, monkeypatch):
    """The same rollout as by NumPy, and nothing is compared."""
    expected, *_ = player().play(50, np.random.default_rng(0))
    monkeypatch.setattr(agent, "numpy_actor", None)
    rollout, *_ = player(numpy_actor=False).play(50, np.random.default_rng(0))
    torch.testing.assert_close(rollout["actions"], expected["actions"])
    torch.testing.assert_close(rollout["logprobs"], expected["logprobs"])


class Noisy(torch.nn.Module):
    """Noise on its input whenever it is called."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(16), torch.nn.LayerNorm(16), Noisy()])
def test_any_layer_trains_without_numpy(script, tiny, monkeypatch, layer):
    class Edited(script.ActorCritic):
        def __init__(self, *args):
            super().__init__(*args)
            self.backbone.insert(1, layer)

    monkeypatch.setattr(script, "ActorCritic", Edited)
    flags = {"hidden_size": 16, "eval_episodes": 2, "numpy_actor": False}
    agent = script.train(tiny(**flags))
    assert all(value.isfinite().all() for value in agent.state_dict().values())


def test_a_layer_that_numpy_actor_lacks_is_refused(player, agent):
    agent.backbone.insert(2, torch.nn.Tanh())
    with pytest.raises((KeyError, ValueError)):
        player().play(50, np.random.default_rng(0))
