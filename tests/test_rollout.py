import numpy as np
import pytest
import reference
import torch
from conftest import all_rows, column
from gymnasium.spaces import Box

FIELDS = ("raw_obs", "actions", "rewards", "next_obs", "terminated", "truncated")


def as_arrays(log):
    return dict(zip(FIELDS, map(np.array, zip(*log, strict=True)), strict=True))


@pytest.fixture
def long(player):
    """[(rows of the rollout, log)] of each environment, 300 steps long, and the episodes. Every kind of end occurs."""
    played = player()
    rollout, episodes = played.play(300, np.random.default_rng(5), first_step=1000)
    pairs = [(column(rollout, i), as_arrays(log)) for i, log in enumerate(played.logs)]
    for _, log in pairs:
        both = log["terminated"] & log["truncated"]
        assert 0 < both.sum() < log["terminated"].sum()
    return pairs, rollout, episodes


def test_each_row_is_one_transition_of_the_environment(long, action_space):
    for rows, log in long[0]:
        for name in ("raw_obs", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(rows[name], log[name])
        actions = rows["actions"]
        if isinstance(action_space, Box):
            assert abs(actions).max() > 1  # the sample is stored, not what clipping left of it
            actions = np.clip(actions, -1, 1)
        np.testing.assert_allclose(actions, log["actions"], rtol=1e-6)


@pytest.mark.parametrize("with_statistics", [False, True])
def test_values_and_logprobs_are_those_of_the_torch_policy(player, agent, action_space, with_statistics):
    """next_values at an episode's end are those of its true last observation, which the log has, not of the reset."""
    if with_statistics:
        agent.obs_stats.update(np.random.default_rng(0).normal(0.1, 0.3, (50, 3)))
        agent.return_stats.update(np.arange(9.0))
    played = player()
    rollout, _ = played.play(100, np.random.default_rng(5))
    mean, std = (torch.as_tensor(moment) for moment in agent.obs_stats.moments())
    return_mean, return_std = agent.return_stats.mean.item(), agent.return_stats.var.item() ** 0.5
    for i, log in enumerate(played.logs):
        rows, log = column(rollout, i), as_arrays(log)
        obs, next_obs = ((torch.as_tensor(log[name]) - mean) / std for name in ("raw_obs", "next_obs"))
        with torch.no_grad():
            actions = torch.as_tensor(rows["actions"])
            logprobs, _, values = reference.evaluate_actions(agent, action_space, obs, actions)
            next_values = agent.critic(agent.backbone(next_obs))[:, 0]
        np.testing.assert_allclose(rows["obs"], obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows["logprobs"], logprobs, rtol=1e-4, atol=1e-5)
        for name, normalised in (("values", values), ("next_values", next_values)):
            np.testing.assert_allclose(rows[name], normalised * return_std + return_mean, rtol=1e-4, atol=1e-5)


def test_episodes_are_complete_and_dated_by_their_last_step(long):
    pairs, rollout, episodes = long
    valid = rollout.get("valid", np.ones((300, 1), bool))
    steps, expected = 1000 + valid.sum(1).cumsum(), []
    for i, (_, log) in enumerate(pairs):
        ends = np.flatnonzero(log["terminated"] | log["truncated"])
        starts = [0, *(ends[:-1] + 1)]
        dates = steps[valid[:, i]][ends]
        expected += [
            (date, pytest.approx(log["rewards"][start : end + 1].sum(), abs=1e-5), end - start + 1)
            for date, start, end in zip(dates, starts, ends, strict=True)
        ]
    assert sorted(episodes) == sorted(expected, key=lambda episode: (episode[0], episode[1].expected))


def test_the_episode_goes_on_in_the_next_rollout(player):
    played, rng, step, seen, episodes = player(), np.random.default_rng(0), 0, [], []
    for num_steps in (50, 1, 1, 1, 10, 7, 10, 20):
        rollout, more = played.play(num_steps, rng, step)
        seen.append([column(rollout, i)["raw_obs"] for i in range(len(played.envs))])
        step += sum(map(len, seen[-1]))
        episodes += more
    for i, log in enumerate(played.logs):
        np.testing.assert_array_equal(np.concatenate([rows[i] for rows in seen]), as_arrays(log)["raw_obs"])
        ended = [terminated or truncated for *_, terminated, truncated in log]
        for t in range(len(log) - 1):
            assert (log[t][3] == log[t + 1][0]).all() == (not ended[t])
    assert sum(map(len, played.logs)) == step
    ends = [np.flatnonzero(as_arrays(log)["terminated"] | as_arrays(log)["truncated"]) for log in played.logs]
    assert sorted(length for *_, length in episodes) == sorted(np.concatenate([np.diff(e, prepend=-1) for e in ends]))


def test_actions_without_noise_are_greedy(player, agent, action_space):
    rollout, _ = player().play(30, rng=None)
    with torch.no_grad():
        parts, _ = reference.distributions(agent, action_space, all_rows(rollout, rollout["obs"]))
    modes = torch.stack([part.mode for part in parts], -1)
    torch.testing.assert_close(all_rows(rollout, rollout["actions"]), modes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trouble", ["obs nan", "obs inf", "obs -inf", "reward nan", "reward inf"])
@pytest.mark.parametrize("step", [1, 13, 20])
def test_nan_and_inf_are_named_with_their_step(player, monkeypatch, trouble, step):
    """A vector environment takes several steps at a time, and names the last of them."""
    monkeypatch.setattr("probe_envs.Trouble.steps", 0)
    monkeypatch.setenv("PROBE_TROUBLE", f"{step} {trouble}")
    played = player("Trouble")
    with pytest.raises(FloatingPointError) as failure:
        played.play(20, np.random.default_rng(5), first_step=400)
    named = int(str(failure.value).split()[-1])
    assert 400 + step <= named < 400 + step + len(played.envs)
