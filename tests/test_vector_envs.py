"""ppo_vector.py in one process: resets, episodes, seeds, actions, resuming. See also test_vector_processes.py."""

import copy
import dataclasses
import itertools
import shutil

import numpy as np
import probe_envs
import pytest
import reference
import torch
from conftest import assert_same_weights, read_scalars
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box, MultiBinary
from gymnasium.vector import AutoresetMode

import ppo_vector

FAMILIES = [("ppo_vector", "Discrete"), ("ppo_vector", "Box")]
both_families = pytest.mark.parametrize("case", FAMILIES, ids="-".join, indirect=True)
discrete = pytest.mark.parametrize("case", FAMILIES[:1], ids="-".join, indirect=True)
TRANSITIONS = "rewards", "values", "next_values", "terminated", "truncated"
ACTION_SPACES = {name: space for spaces in probe_envs.ACTION_SPACES.values() for name, space in spaces.items()}

# What probe_envs.Scripted plays, one character a step: "." goes on, T, U and B end an episode, r is the reset after it.
TRACE = np.array([list("..Tr.Ur.Br.T"), list("TrTr.BrUr..U"), list(".....TrTrTr.")]).T
STEPS_OF_THE_ENDS = [3, 8, 8, 15, 15, 15, 18, 18, 19, 21, 26, 26]  # with every r left out

# Values by the Bellman equation V = r + gamma P V, with gamma 0.9.
STAGGERED = {
    "StaggeredEnd": np.linalg.solve(np.eye(4) - 0.9 * np.eye(4, k=1), [1, 0, -2, 3]),
    "StaggeredEndless": np.linalg.solve(np.eye(3) - 0.9 * np.roll(np.eye(3), 1, axis=1), [1, 0, 2]),
}


def play(envs, agent, num_steps, ended=None, obs=None, first_step=0):
    """A rollout of envs, reset where no obs is given: single ones with the seeds 0, 1, ..., native ones with 0."""
    if obs is None:
        native = hasattr(envs, "env")  # its wrappers
        obs, _ = envs.reset(seed=0 if native else list(range(envs.num_envs)))
        ended = np.zeros(envs.num_envs, bool)
    return ppo_vector.collect_rollout(envs, agent, obs, ended, num_steps, np.random.default_rng(7), first_step)


@pytest.fixture
def observe_rollouts(monkeypatch):
    """observe_rollouts(function): from now on train collects its rollouts by function(collect_rollout, *args)."""
    collect_rollout = ppo_vector.collect_rollout

    def observe_rollouts(function):
        monkeypatch.setattr(ppo_vector, "collect_rollout", lambda *args: function(collect_rollout, *args))

    return observe_rollouts


@discrete
@pytest.mark.parametrize("lengths", [[12], [5, 7], [6, 6], [1] * 12], ids=str)
def test_rollouts_follow_a_trace_written_by_hand(agent, lengths):
    """Three environments that all end in the sixth step, whatever the lengths of the rollouts."""
    expected_obs, ends = [np.array([(i, 0, 0) for i in range(3)])], []
    for marks in TRACE:
        obs = expected_obs[-1].copy()
        for i, mark in enumerate(marks):
            obs[i] = (i, obs[i, 1] + 1, 0) if mark == "r" else obs[i] + (0, 0, 1)
            if mark in "TUB":
                length = obs[i, 2]
                ends.append((10 * i * length + sum(range(length + 1)), length))
        expected_obs.append(obs)

    envs, obs, ended, rollouts, episodes = ppo_vector.make_envs("probe_envs:Scripted-v0", 3, "sync"), None, None, [], []
    for num_steps in lengths:
        first_step = 1000 + sum(rollout["valid"].sum() for rollout in rollouts)
        rollout, obs, ended, more = play(envs, agent, num_steps, ended, obs, first_step)
        rollouts.append(rollout)
        episodes += more

    rollout = {name: np.concatenate([np.asarray(part[name]) for part in rollouts]) for name in rollouts[0]}
    valid, next_obs = TRACE != "r", np.array(expected_obs[1:], np.float32)
    np.testing.assert_array_equal(rollout["valid"], valid)
    np.testing.assert_array_equal(rollout["terminated"][valid], np.isin(TRACE, ["T", "B"])[valid])
    np.testing.assert_array_equal(rollout["truncated"][valid], np.isin(TRACE, ["U", "B"])[valid])
    np.testing.assert_array_equal(ended, [True, True, False])
    np.testing.assert_array_equal(rollout["raw_obs"], expected_obs[:-1])
    np.testing.assert_array_equal(obs, expected_obs[-1])
    np.testing.assert_array_equal(rollout["rewards"][valid], (next_obs[..., 0] * 10 + next_obs[..., 2])[valid])
    with torch.no_grad():
        _, next_values = agent(torch.as_tensor(next_obs))
    np.testing.assert_allclose(rollout["next_values"][valid], next_values.numpy()[valid], rtol=1e-5)
    assert episodes == [(1000 + step, *end) for step, end in zip(STEPS_OF_THE_ENDS, ends, strict=True)]


@both_families
def test_rows_of_a_native_vector_environment_are_its_transitions(agent, probe, family):
    envs = ppo_vector.make_envs(probe("NativeRecorder"), 3)
    rollout, _, _, episodes = play(envs, agent, 80)
    expected_episodes = []
    for i, env in enumerate(envs.unwrapped.envs):
        rows = rollout["valid"][:, i]
        raw_obs, actions, rewards, _, terminated, truncated = map(np.array, zip(*env.log, strict=True))
        for name, logged in (
            ("raw_obs", raw_obs),
            ("rewards", rewards),
            ("terminated", terminated),
            ("truncated", truncated),
        ):
            np.testing.assert_array_equal(rollout[name][rows, i], logged)
        chosen = rollout["actions"].numpy()[rows, i]
        np.testing.assert_array_equal(np.clip(chosen, -1, 1) if family == "Box" else chosen, actions)
        for start, end in itertools.pairwise([0, *(np.flatnonzero(terminated | truncated) + 1)]):
            expected_episodes.append((rewards[start:end].sum(), end - start))
    assert len(expected_episodes) > 30
    episodes = sorted((episode_return, length) for _, episode_return, length in episodes)
    np.testing.assert_allclose(episodes, sorted(expected_episodes), rtol=1e-4, atol=1e-4)


@both_families
def test_advantages_are_those_of_each_environment_alone(agent, probe):
    rollout, *_ = play(ppo_vector.make_envs(probe("Recorder"), 3, "sync"), agent, 100)
    advantages, returns = ppo_vector.compute_gae(*(rollout[name] for name in TRANSITIONS), 0.9, 0.8)
    for i in range(3):
        rows = rollout["valid"][:, i]
        assert 10 < sum(~rows) < 50
        alone = [rollout[name][rows, i] for name in TRANSITIONS]
        expected = reference.gae(*alone, 0.9, 0.8)
        np.testing.assert_allclose(advantages[rows, i], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(returns[rows, i], expected + alone[1], rtol=1e-5, atol=1e-5)


@both_families
def test_rows_of_a_reset_change_nothing(tiny, tmp_path, observe_rollouts):
    """With huge numbers in them training is the same to the bit: statistics, losses and weights."""
    poisoned, args = [], tiny(num_envs=3, num_steps=16, total_timesteps=250, norm_obs=True)

    def run(name):
        agent, returns = ppo_vector.train(dataclasses.replace(args, log_dir=str(tmp_path / name)))
        (folder,) = (tmp_path / name).iterdir()
        return agent.state_dict(), (returns, read_scalars(folder))

    def poison(collect_rollout, *args):
        rollout, *rest = collect_rollout(*args)
        reset = ~rollout["valid"]
        rollout = {name: copy.deepcopy(value) for name, value in rollout.items()}  # values and next_values overlap
        for name in set(rollout) - {"valid"}:
            rollout[name][reset] = 10**9
        poisoned.append(reset.sum())
        return rollout, *rest

    clean_weights, clean_results = run("clean")
    observe_rollouts(poison)
    weights, results = run("poisoned")
    assert min(poisoned) > 3
    assert_same_weights(weights, clean_weights)
    assert results == clean_results


@discrete
@pytest.mark.parametrize("name", STAGGERED)
def test_values_become_the_known_ones_where_environments_end_at_different_times(tiny, name):
    flags = {"total_timesteps": 6000, "num_envs": 8, "num_steps": 32, "num_minibatches": 4, "learning_rate": 5e-3}
    agent, _ = ppo_vector.train(tiny(env_id=f"probe_envs:{name}-v0", gamma=0.9, gae_lambda=0.9, **flags))
    mean, std = agent.return_stats.moments()
    with torch.no_grad():
        _, values = agent(torch.eye(len(STAGGERED[name])))
    np.testing.assert_allclose(values.numpy() * std + mean, STAGGERED[name], rtol=0.05, atol=0.05)


@both_families
def test_sync_and_async_give_the_same_rollout(agent, probe):
    results = []
    for mode in ("sync", "async"):
        envs = ppo_vector.make_envs(probe("Recorder"), 3, mode)
        rollout, *rest = play(envs, agent, 60, first_step=100)
        results.append([{name: np.asarray(value) for name, value in rollout.items()}, *rest])
        envs.close()
    np.testing.assert_equal(*results)
    assert (results[0][0]["terminated"] & results[0][0]["truncated"]).any()


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_every_mode_has_next_step_autoreset(mode):
    envs = ppo_vector.make_envs("CartPole-v1", 2, mode)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.close()


@discrete
@pytest.mark.parametrize("name", ["NativeSameStep", "NativeUntold"])
def test_a_vector_environment_without_next_step_autoreset_is_refused(command, tmp_path, name):
    result = command("--env-id", f"probe_envs:{name}-v0", "--log-dir", tmp_path / "runs")
    assert result.code == 2
    assert result.err.startswith(f"error: --env-id probe_envs:{name}-v0")
    assert "NEXT_STEP" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@discrete
@pytest.mark.parametrize("env_id", ["probe_envs:RecorderDiscrete-v0", "CartPole-v1"])
def test_no_two_episodes_begin_alike(tiny, monkeypatch, observe_rollouts, env_id):
    """Of two seeds, two processes, four environments, and the beginnings after each checkpoint."""
    runs = []

    def observe(collect_rollout, envs, agent, obs, *rest):
        runs[-1].extend(obs.copy())
        return collect_rollout(envs, agent, obs, *rest)

    observe_rollouts(observe)
    flags = {"env_id": env_id, "num_envs": 4, "num_steps": 8, "total_timesteps": 60, "checkpoint_interval": 1}
    for seed, rank in [(1, 0), (1, 1), (2, 0), (2, 1), (1, 0)]:
        monkeypatch.setenv("RANK", str(rank))
        runs.append([])
        ppo_vector.train(tiny(seed=seed, exp_name=str(len(runs)), **flags))
    np.testing.assert_array_equal(runs[0], runs[4])
    others = np.concatenate(runs[:4])
    assert len(np.unique(others, axis=0)) == len(others) >= 4 * 2 * 4


@pytest.mark.parametrize("prefix, mode", [("", "sync"), ("Native", "vector_entry_point")])
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_actions_lie_in_the_space_and_reach_all_of_it(prefix, mode, name):
    """The Recorder refuses those outside."""
    envs = ppo_vector.make_envs(f"probe_envs:{prefix}{name}-v0", 3, mode)
    torch.manual_seed(0)
    rollout, *_ = play(envs, ppo_vector.ActorCritic(3, envs.single_action_space, 16), 80)
    actions = np.array([action for env in envs.unwrapped.envs for _, action, *_ in env.unwrapped.log])
    assert len(actions) == rollout["valid"].sum() > 100
    space, (low, high) = ACTION_SPACES[name], (actions.min(0), actions.max(0))
    if isinstance(space, Box):
        for reached, bound in ((low, space.low), (high, space.high)):
            np.testing.assert_array_equal(reached[np.isfinite(bound)], bound[np.isfinite(bound)])
    else:
        first = 0 if isinstance(space, MultiBinary) else space.start
        choices = 2 if isinstance(space, MultiBinary) else getattr(space, "nvec", getattr(space, "n", None))
        np.testing.assert_array_equal(low, np.broadcast_to(first, space.shape))
        np.testing.assert_array_equal(high, np.broadcast_to(first + choices - 1, space.shape))


@pytest.mark.parametrize("name", probe_envs.OBSERVATION_SPACES)
def test_observations_of_a_native_vector_environment_are_flattened_as_those_of_single_ones(name):
    rollouts = []
    for mode in ("sync", "vector_entry_point"):
        envs = ppo_vector.make_envs(f"probe_envs:Native{name}-v0", 1, mode)
        torch.manual_seed(0)
        agent = ppo_vector.ActorCritic(envs.single_observation_space.shape[0], envs.single_action_space, 16)
        rollouts.append(play(envs, agent, 20)[0])
    np.testing.assert_array_equal(rollouts[0]["raw_obs"], rollouts[1]["raw_obs"])
    np.testing.assert_array_equal(rollouts[0]["rewards"], rollouts[1]["rewards"])


def test_cartpole_is_played_in_its_own_vector_environment():
    envs = ppo_vector.make_envs("CartPole-v1", 5)
    assert isinstance(envs.unwrapped, CartPoleVectorEnv)
    rollout, _, _, episodes = play(envs, ppo_vector.ActorCritic(4, envs.single_action_space, 16), 200)
    assert set(rollout["rewards"][rollout["valid"]]) == {1}
    assert len(episodes) == rollout["terminated"].sum() > 20
    assert all(episode_return == length for _, episode_return, length in episodes)


@discrete
@pytest.mark.parametrize(
    "env_id, mode",
    [
        ("probe_envs:RecorderDiscrete-v0", "sync"),
        ("probe_envs:RecorderDiscrete-v0", "async"),
        ("CartPole-v1", "vector_entry_point"),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tiny, tmp_path, monkeypatch, env_id, mode):
    """It goes on from a copy of the run folder of two iterations after a checkpoint: what kill -9 would leave."""
    log_iteration, cut = ppo_vector.log_iteration, tmp_path / "cut"

    def log_and_copy(writer, args, iteration, *rest):
        log_iteration(writer, args, iteration, *rest)
        if iteration == 5 and not cut.exists():
            writer.flush()
            shutil.copytree(writer.get_logdir(), cut)

    monkeypatch.setattr(ppo_vector, "log_iteration", log_and_copy)
    flags = {"env_id": env_id, "vectorization_mode": mode, "num_steps": 16, "num_envs": 3, "total_timesteps": 400}
    whole, returns = ppo_vector.train(tiny(**flags, norm_obs=True, checkpoint_interval=3, eval_episodes=2))
    saved = ppo_vector.load_checkpoint(cut / "checkpoint.pt")
    assert saved["iteration"] == 3
    assert len(read_scalars(cut)["losses/entropy"]) == 5
    resumed, last_returns = ppo_vector.train(dataclasses.replace(saved["args"], resume=str(cut / "checkpoint.pt")))
    (folder,) = (tmp_path / "runs").iterdir()
    assert_same_weights(resumed.state_dict(), whole.state_dict())
    assert returns[-len(last_returns) :] == last_returns
    assert read_scalars(cut) == read_scalars(folder)


@discrete
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_environment_is_closed_at_the_end(tiny, monkeypatch, tmp_path, mode):
    monkeypatch.setenv("PROBE_FOLDER", str(tmp_path))
    flags = {"env_id": "probe_envs:Accident-v0", "checkpoint_interval": 2, "eval_episodes": 1}
    ppo_vector.train(tiny(vectorization_mode=mode, **flags))
    made, closed = (sorted((tmp_path / event).read_text().splitlines()) for event in ("made", "closed"))
    assert len(made) > 10
    assert made == closed
