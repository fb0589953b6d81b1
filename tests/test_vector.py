"""ppo_vector.py alone: resets, native environments, torchrun, asynchronous environments. As a script: one of two."""

import contextlib
import copy
import fcntl
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
import reference
import torch
from conftest import (
    OBS_SPACE,
    ROOT,
    TESTS,
    Player,
    assert_same,
    load,
    make_agent,
    read_scalars,
    run_folder,
    vector_cases,
    vector_script,
)
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from torch import distributed as dist

import ppo_vector

TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"

# What probe_envs.Scripted plays, one character a step: "." goes on, T, U and B end an episode, r is the reset after it.
TRACE = np.array([list("..Tr.Ur.Br.T"), list("TrTr.BrUr..U"), list(".....TrTrTr.")]).T


def make(env_id, num_envs, mode=None):
    return ppo_vector.make_envs(ppo_vector.Args(env_id=env_id, vectorization_mode=mode), num_envs)


@vector_script
@pytest.mark.parametrize("lengths", [[12], [5, 7], [2] * 6], ids=str)
def test_rollouts_follow_a_trace_written_by_hand(agent, lengths):
    """Three environments that all end in the sixth step, whatever the lengths of the rollouts."""
    expected_obs = [np.array([(i, 0, 0) for i in range(3)])]
    ends = []
    for marks in TRACE:
        obs = expected_obs[-1].copy()
        for i, mark in enumerate(marks):
            obs[i] = (i, obs[i, 1] + 1, 0) if mark == "r" else obs[i] + (0, 0, 1)
            if mark in "TUB":
                ends.append((10 * i * obs[i, 2] + sum(range(obs[i, 2] + 1)), obs[i, 2]))
        expected_obs.append(obs)
    player = Player(ppo_vector, agent, "probe_envs:Scripted-v0", seed=0)
    parts = []
    episodes = []
    for num_steps in lengths:
        rollout, transitions, more = player.play(num_steps, np.random.default_rng(7))
        names = ("rewards", "values", "next_values", "terminated", "truncated")
        parts.append((rollout["obs"], rollout["valid"], *(transitions[name] for name in names)))
        episodes += more
    obs, valid, rewards, _, next_values, terminated, truncated = (np.concatenate(x) for x in zip(*parts, strict=True))
    next_obs = np.array(expected_obs[1:], np.float32)
    np.testing.assert_array_equal(valid, TRACE != "r")
    np.testing.assert_array_equal(terminated[valid], np.isin(TRACE, ["T", "B"])[valid])
    np.testing.assert_array_equal(truncated[valid], np.isin(TRACE, ["U", "B"])[valid])
    np.testing.assert_array_equal(player.done[0], [True, True, False])
    np.testing.assert_array_equal(obs, np.array(expected_obs[:-1])[valid])
    np.testing.assert_array_equal(rewards[valid], (next_obs[..., 0] * 10 + next_obs[..., 2])[valid])
    with torch.no_grad():
        _, expected_values = agent(torch.as_tensor(next_obs[valid]))
    np.testing.assert_allclose(next_values[valid], expected_values, rtol=1e-4, atol=1e-5)
    assert episodes == ends


@vector_cases
def test_sync_and_async_give_the_same_rollout(player):
    results = []
    for mode in ("sync", "async"):
        played = player(vectorization_mode=mode)
        results.append([*played.play(60, np.random.default_rng(7)), played.obs, *played.done])
        played.env.close()
    assert_same(*results)


@pytest.mark.parametrize(
    "env_id, mode, kind",
    [
        ("CartPole-v1", None, CartPoleVectorEnv),
        ("CartPole-v1", "vector_entry_point", CartPoleVectorEnv),
        ("CartPole-v1", "sync", SyncVectorEnv),
        ("CartPole-v1", "async", AsyncVectorEnv),
        ("probe_envs:RecorderDiscrete-v0", None, SyncVectorEnv),
    ],
)
def test_a_mode_is_obeyed_and_by_default_the_native_form_comes_first(env_id, mode, kind):
    envs = make(env_id, 2, mode)
    assert type(envs.unwrapped) is kind
    envs.close()


@pytest.mark.filterwarnings("ignore")
def test_native_observations_must_be_rows(monkeypatch):
    """Columns (dim, N) would mix the environments."""
    reset = probe_envs.NativeRecorder.reset
    envs = make("probe_envs:NativeRecorderDiscrete-v0", 2)
    envs.reset()
    monkeypatch.setattr(probe_envs.NativeRecorder, "reset", lambda *a, **k: (reset(*a, **k)[0].T, {}))
    with pytest.raises(ValueError, match="reshape"):
        envs.reset()


@pytest.mark.parametrize("name", ["NativeSameStep", "NativeUntold"])
def test_a_vector_environment_without_next_step_autoreset_is_refused(name):
    with pytest.raises(ValueError, match="has no NEXT_STEP autoreset"):
        make(f"probe_envs:{name}-v0", 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", probe_envs.OBSERVATION_SPACES)
def test_observations_of_a_native_vector_environment_are_flattened_as_those_of_single_ones(name):
    rollouts = []
    for mode in ("sync", "vector_entry_point"):
        player = Player(ppo_vector, None, f"probe_envs:Native{name}-v0", 1, vectorization_mode=mode)
        torch.manual_seed(0)
        player.agent = make_agent(ppo_vector, player.env, player.args)
        rollouts.append(player.play(20, np.random.default_rng(7))[0])
    np.testing.assert_array_equal(rollouts[0]["obs"], rollouts[1]["obs"])


@vector_script
def test_no_two_environments_begin_alike(tiny, monkeypatch, record):
    """Of two seeds and two processes; the same seed begins alike."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    first = []
    for seed, rank in [(1, 0), (1, 1), (2, 0), (2, 1), (1, 0)]:
        monkeypatch.setenv("RANK", str(rank))
        observations = record("collect_rollout", lambda envs, agent, obs, *_: obs.copy())
        ppo_vector.train(tiny(seed=seed, log_dir=f"runs{len(first)}", env_id="CartPole-v1", num_envs=4))
        first.append(observations[0])
    np.testing.assert_array_equal(first[0], first[4])
    assert len(np.unique(np.concatenate(first[:4]), axis=0)) == 16


RUN = {"env_id": "probe_envs:RecorderDiscrete-v0", "total_timesteps": 600, "num_steps": 32, "num_envs": 2}
RUN |= {"num_minibatches": 1, "update_epochs": 1, "eval_episodes": 3, "hidden_size": 16}


class PartlyUsed(ppo_vector.ActorCritic):
    """An agent with a parameter that has no gradient."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unused = torch.nn.Parameter(torch.zeros(3))


def work(folder):
    """What each of two processes does: a whole run, of which it saves the observations, returns and parameters."""
    rank = int(os.environ["RANK"])
    first = []
    obs = []
    targets = []
    parameters = []
    collect_rollout = ppo_vector.collect_rollout
    ppo_update = ppo_vector.ppo_update
    average = ppo_vector.average

    def collect(envs, agent, *args, **evaluation):
        if not first:
            first.extend([copy.deepcopy(agent.state_dict()), [random.random(), np.random.random()]])
        rollout, *rest = collect_rollout(envs, agent, *args, **evaluation)
        if not evaluation:
            obs.append(rollout["obs"])
        return rollout, *rest

    def update(agent, optimizer, rollout, advantages, returns, *rest):
        targets.append(torch.as_tensor(returns))
        return ppo_update(agent, optimizer, rollout, advantages, returns, *rest)

    def averaged(tensor):
        own = tensor.clone()
        result = average(tensor)
        if own.numel() > 500:  # not the moments
            parameters.append((own, result.clone()))
        return result

    ppo_vector.collect_rollout = collect
    ppo_vector.ppo_update = update
    ppo_vector.average = averaged
    ppo_vector.ActorCritic = PartlyUsed
    agent = ppo_vector.train(ppo_vector.Args(**RUN, log_dir=f"{folder}/runs"))
    results = {"first": first, "obs": obs, "targets": targets, "parameters": parameters}
    torch.save(results | {"weights": agent.state_dict()}, Path(folder, f"{rank}.pt"))


def test_two_processes_train_as_one_and_one_goes_on(tmp_path, monkeypatch):
    command = [sys.executable, *TORCHRUN, __file__, tmp_path]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_same(one["first"][0], other["first"][0])
    assert (np.array(one["first"][1]) != other["first"][1]).all()  # numbers of the global generators
    assert_same(one["weights"], other["weights"])
    assert not torch.equal(one["obs"][0][:10], other["obs"][0][:10])
    obs = [x for process in (one, other) for x in process["obs"]]
    targets = [x for process in (one, other) for x in process["targets"]]
    rms = torch.cat(obs).double().square().mean(0).sqrt()
    mean = torch.stack([x.mean() for x in targets]).mean()
    std = (torch.stack([x.square().mean() for x in targets]).mean() - mean**2).sqrt()
    for name, expected in (("obs_rms", rms), ("return_mean", mean), ("return_std", std)):
        torch.testing.assert_close(one["weights"][name], expected.float(), rtol=1e-4, atol=0)
    assert len(one["parameters"]) > 3
    for (mine, mean), (theirs, same) in zip(one["parameters"], other["parameters"], strict=True):
        assert_same(mean, same)
        torch.testing.assert_close(mean, (mine + theirs) / 2)
        assert not torch.equal(mine, theirs)
    folder = run_folder(tmp_path / "runs")
    assert len([*folder.glob("events*")]) == 1
    assert done.stdout.count("checkpoint: ") == done.stdout.count("evaluation: ") == 1
    steps = [step for step, _ in read_scalars(folder)["losses/entropy"]]
    assert steps == [*range(128, 641, 128)]
    monkeypatch.setattr(ppo_vector, "ActorCritic", PartlyUsed)
    run = RUN | {"total_timesteps": 800, "resume": str(folder / "checkpoint.pt")}
    assert not torch.equal(ppo_vector.train(ppo_vector.Args(**run)).obs_rms, one["weights"]["obs_rms"])
    resumed = [step for step, _ in read_scalars(folder)["losses/entropy"]]
    assert resumed == [*steps, 704, 768, 832]


@pytest.fixture
def start(tmp_path):
    """Start the script on the Accident, after the launcher's words; its output goes to the files out and err."""
    processes = []

    def start(accident, mode, launcher=(), **vector_kwargs):
        flags = f"--env-id probe_envs:Accident-v0 --vectorization-mode {mode} --num-envs 3 --num-steps 32"
        words = [*launcher, ROOT / "ppo_vector.py", *flags.split(), "--num-minibatches", "2", "--eval-episodes", "0"]
        words += ["--env-kwargs", json.dumps({"vector_kwargs": vector_kwargs} if vector_kwargs else {})]
        env = os.environ | {"PROBE_ACCIDENT": accident, "PROBE_FOLDER": str(tmp_path), "PYTHONPATH": str(TESTS)}
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            options = {"stdout": out, "stderr": err, "start_new_session": True}
            restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
            processes.append(subprocess.Popen([sys.executable, *words], env=env, cwd=tmp_path, **options, **restore))
        return processes[-1]

    yield start
    for process in processes:  # the script may have ended, and its workers not
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("mode, launcher", [("async", ()), ("sync", TORCHRUN)], ids=["async", "torchrun"])
def test_a_killed_process_ends_the_run(start, tmp_path, mode, launcher):
    """Of asynchronous environments one, or one of torchrun's processes."""
    assert start("kill", mode, launcher).wait(90) > 0
    assert (tmp_path / "accident").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_asynchronous_environments_with_a_checkpoint(start, tmp_path, number):
    process = start("none", "async")
    assert wait_until(lambda: "step" in (tmp_path / "out").read_text(), 60)
    os.kill(process.pid, number)
    assert process.wait(30) == 128 + number
    assert (tmp_path / "out").read_text().splitlines()[-1].startswith("checkpoint: ")
    assert "Exception ignored" not in (tmp_path / "err").read_text()


def test_the_agent_of_discrete_actions_has_no_gaussian():
    assert "log_std" not in ppo_vector.ActorCritic(OBS_SPACE, Discrete(2), ppo_vector.Args()).state_dict()


def missing(env):
    raise gym.error.DependencyNotInstalled("opencv is not installed")


@vector_script
@pytest.mark.parametrize(
    "env_id, wrapper, message",
    [
        ("probe_envs:RecorderDiscrete-v0", missing, "opencv is not installed"),
        ("CartPole-v1", gym.wrappers.NormalizeReward, "vector_entry_point"),
    ],
)
def test_wrappers_of_one_environment_are_never_dropped(edited, env_id, wrapper, message):
    """Of a native form, or where one of them does not work."""
    copy = runpy.run_path(edited(("wrappers = []", "wrappers = [wrapper]")), {"wrapper": wrapper})
    with pytest.raises(ValueError, match=message):
        copy["make_envs"](copy["Args"](env_id=env_id), 2)


@vector_script
def test_short_episodes_alone_do_not_solve(tiny, capsys):
    """Good episodes end in 2 steps, bad ones in 100: the first 20 to end are good."""
    for target, steps, solved in ((0.9, 1024, False), (-1, 1024, False), (-1, 8192, True)):
        flags = {"total_timesteps": steps, "target_return": target, "num_envs": 32}
        ppo_vector.train(tiny(env_id="probe_envs:Hasty-v0", num_steps=8, log_dir=f"{target} {steps}", **flags))
        assert ("solved" in capsys.readouterr().out) is solved


@vector_script
def test_a_run_is_solved_when_all_processes_say_so(tiny, monkeypatch):
    """Else one would wait for the others. Of two processes this one would be solved after 48 steps."""
    monkeypatch.setattr(ppo_vector, "average", lambda tensor: tensor / 2 if tensor.ndim == 0 else tensor)
    ppo_vector.train(tiny(env_id="probe_envs:OneStepDiscrete-v0", target_return=1.0, total_timesteps=128))
    assert load(run_folder())["step"] == 128


@vector_script
def test_a_native_environment_whose_close_takes_no_timeout_is_closed(tiny, monkeypatch):
    """As that of gym.vector.VectorEnv."""
    closed = []
    monkeypatch.setattr(probe_envs.NativeRecorder, "close_extras", lambda self: closed.append(self.num_envs))
    monkeypatch.setattr(probe_envs.NativeRecorder, "processes", [], raising=False)  # as in SB3's SubprocVecEnv
    ppo_vector.train(tiny(env_id="probe_envs:NativeRecorderDiscrete-v0", eval_episodes=1))
    assert closed == [2, 1]


def test_a_vectorization_mode_in_env_kwargs_holds():
    envs = ppo_vector.make_envs(ppo_vector.Args(env_kwargs={"vectorization_mode": "async"}), 2)
    assert type(envs.unwrapped) is AsyncVectorEnv
    envs.close()


@vector_script
def test_rollouts_too_small_for_their_minibatches_are_refused(script, probe, tiny, tmp_path):
    """Of episodes of one step every second step is a reset."""
    for flags in ({"num_steps": 1}, {"num_steps": 3, "num_envs": 1, "num_minibatches": 2}):
        with pytest.raises(ValueError, match="too few --num-steps"):
            script.train(tiny(env_id=probe("OneStep"), **flags))
    assert not [*tmp_path.iterdir()]
    script.train(tiny(env_id=probe("OneStep"), num_steps=3, num_envs=2, num_minibatches=2))


@vector_cases
def test_advantages_are_those_of_each_environment_alone(script, player):
    """Nothing of a step that is a reset reaches them."""
    played = player()
    rollout, transitions, _ = played.play(100, np.random.default_rng(5))
    advantages, _ = script.compute_gae(**transitions, gamma=0.9, gae_lambda=0.8)
    for i in range(3):
        rows = rollout["valid"][:, i]
        assert 10 < sum(~rows) < 50
        alone = {name: array[rows, i] for name, array in transitions.items()}
        expected = reference.gae(**alone, gamma=0.9, gae_lambda=0.8)
        np.testing.assert_allclose(advantages[rows, i], expected, rtol=1e-5, atol=1e-5)


# Values by the Bellman equation V = r + gamma P V, with gamma 0.9.
STAGGERED = {
    "StaggeredEnd": np.linalg.solve(np.eye(4) - 0.9 * np.eye(4, k=1), [1, 0, -2, 3]),
    "StaggeredEndless": np.linalg.solve(np.eye(3) - 0.9 * np.roll(np.eye(3), 1, axis=1), [1, 0, 2]),
}


@vector_script
@pytest.mark.parametrize("name", STAGGERED)
def test_values_become_the_known_ones_where_environments_end_at_different_times(script, tiny, name):
    flags = {"total_timesteps": 8000, "num_envs": 8, "num_steps": 32, "num_minibatches": 4, "learning_rate": 5e-3}
    agent = script.train(tiny(env_id=f"probe_envs:{name}-v0", gamma=0.9, gae_lambda=0.9, **flags))
    with torch.no_grad():
        _, values = agent(torch.eye(len(STAGGERED[name])))
    np.testing.assert_allclose(values, STAGGERED[name], rtol=0.05, atol=0.05)


def wait_until(condition, seconds):
    """Whether the condition becomes true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def nobody_alive():
    """No process, child or grandchild, in which there is an Accident still runs."""
    with Path("alive").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def assert_checkpoint_after_one_iteration():
    assert load(run_folder())["step"] == 96
    assert Path("out").read_text().splitlines()[-1] == f"checkpoint: {run_folder() / 'checkpoint.pt'}"


def test_an_error_in_an_asynchronous_environment_is_named(start):
    assert start("raise", "async").wait(60) == 1
    assert "RuntimeError: an accident in step 40" in Path("err").read_text()
    assert Path("err").read_text().count("Traceback") >= 1
    assert_checkpoint_after_one_iteration()
    assert wait_until(nobody_alive, 5)


@pytest.mark.parametrize(
    "accident, number, to_all, context",  # how processes start: None is Python's default
    [
        ("hang", signal.SIGINT, True, None),
        ("hang", signal.SIGINT, True, "forkserver"),
        ("hang", signal.SIGINT, True, "spawn"),
        ("hang", signal.SIGTERM, True, None),
        ("hang", signal.SIGTERM, False, None),
        ("hang", signal.SIGTERM, False, "forkserver"),
        ("compute", signal.SIGINT, True, None),
    ],
)
def test_a_signal_in_a_long_step_of_an_asynchronous_environment(start, accident, number, to_all, context):
    process = start(accident, "async", context=context)
    assert wait_until(Path("accident").exists, 60)
    assert not nobody_alive()
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert process.wait(30) == 128 + number
    assert "Exception ignored" not in Path("err").read_text()
    assert wait_until(nobody_alive, 5)
    assert_checkpoint_after_one_iteration()


@vector_script
@pytest.mark.parametrize("local_rank, gpus, chosen", [(0, 2, 0), (1, 2, 1), (1, 1, 0), (5, 4, 1)])
def test_each_process_takes_its_own_gpu(tiny, monkeypatch, local_rank, gpus, chosen):
    taken = []

    def set_device(number):
        taken.append(number)
        raise RuntimeError("the rest needs a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(RuntimeError, match="needs a GPU"):
        ppo_vector.train(tiny(device="cuda"))
    assert taken == [chosen]


def test_frames_are_kept_as_bytes():
    """They take a quarter of the memory, until forward takes them."""
    player = Player(ppo_vector, None, "probe_envs:ObsImageDiscrete-v0")
    agent = make_agent(ppo_vector, player.env, player.args)
    player.agent = agent
    rollout, *_ = player.play(40, np.random.default_rng(7))
    assert rollout["obs"].dtype == torch.uint8
    agent.update_obs_stats(rollout["obs"])
    squares = rollout["obs"].numpy().astype(float) ** 2
    np.testing.assert_allclose(agent.obs_rms, np.sqrt(squares.mean(0)), rtol=1e-5)


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_environments_of_envpool_reset_in_the_next_step(task, monkeypatch):
    """As the adapter promises, and one seed gives the same episodes twice."""
    pytest.importorskip("envpool")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    envs = make(f"envpool_envs:EnvPool/{task}", 3)
    runs = []
    for seed in (4, 4, 5):
        actions = np.random.default_rng(1)
        obs, _ = envs.reset(seed=seed)
        rows = [obs.copy()]
        done = np.zeros(3, bool)
        for _ in range(1100):
            shape = (3, *envs.single_action_space.shape)
            action = actions.integers(2, size=shape) if task == "CartPole-v1" else actions.normal(size=shape)
            obs, rewards, terminated, truncated, _ = envs.step(action)
            assert not (done & (terminated | truncated)).any()
            assert not rewards[done].any()
            done = terminated | truncated
            rows.append(obs.copy())
        runs.append(np.array(rows))
    assert (runs[0] == runs[1]).all() and not (runs[0] == runs[2]).all()


def test_a_reset_of_old_gym_is_refused():
    """It returns the observation alone, of which the first number is no observation."""
    env = probe_envs.Recorder(Discrete(2), Box(-1, 1, (3,)))
    env.reset = lambda **_: np.zeros(3)
    with pytest.raises(ValueError, match="unpack"):
        ppo_vector.DropInfo(env).reset()


@vector_script
def test_a_rank_without_a_group_does_not_count(script, tiny, monkeypatch):
    """As left over from another program: such a run would save nothing and say nothing."""
    monkeypatch.setenv("RANK", "1")
    script.train(tiny())
    assert load(run_folder())["step"] == 64


if __name__ == "__main__":
    work(sys.argv[1])
    assert not dist.is_initialized()
