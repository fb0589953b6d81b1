"""Environments and edits as in public reports of people who train by PPO: what is accepted, and what is said."""

import re
import runpy
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
import torch
from conftest import (
    as_words,
    discrete_cases,
    load,
    make_agent,
    make_envs,
    once_per_script,
    only,
    rollout_size,
    run_folder,
    single_cases,
    vector_script,
)

import ppo_vector


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["reused", "episode", "ragged", "mixed", "nested"])
def test_nothing_in_an_info_stops_or_bends_a_run(script, probe, tiny, record, kind):
    """The episodes are those of the same environment with an empty info."""
    rollouts = record("collect_rollout")
    runs = []
    for name in (f"Info{kind}", "Recorder"):
        rollouts.clear()
        script.train(tiny(env_id=probe(name), eval_episodes=3, log_dir=name))
        runs.append([(episode["r"], episode["l"]) for *_, episodes in rollouts for episode in episodes])
    assert runs[0] == runs[1]
    assert len(runs[0]) > 5


@vector_script
def test_nothing_in_an_info_of_a_native_vector_environment_stops_a_run(tiny, monkeypatch):
    info = {"episode": {"r": np.array([1e9, 1e9])}, "text": "a"}
    step = probe_envs.NativeRecorder.step
    monkeypatch.setattr(probe_envs.NativeRecorder, "step", lambda *args: (*step(*args)[:4], info))
    ppo_vector.train(tiny(env_id="probe_envs:NativeRecorderDiscrete-v0", eval_episodes=3))
    assert {*info} == {"episode", "text"}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_info_of_each_environment_is_dropped_before_it_is_gathered(mode):
    args = ppo_vector.Args(env_id="probe_envs:InfomixedDiscrete-v0", vectorization_mode=mode)
    envs = ppo_vector.make_envs(args, 2)
    assert envs.reset(seed=1)[1] == {}
    assert not {*envs.step(np.zeros(2, int))[-1]} - {"ppo_episode", "_ppo_episode"}
    envs.close()


def test_a_loss_that_is_not_finite_is_named_with_the_sizes_and_the_cure(probe, main):
    """In one line, and the checkpoint is sound."""
    run = "--env-id", probe("Recorder"), "--eval-episodes", 0, "--total-timesteps", 10_000
    code, message = main(*run, "--learning-rate", 1e20)
    assert code == 1
    assert re.search(r"^error: NaN or Inf .* --norm-obs .* --learning-rate.*reward: \S+, \S+\)$", message)
    assert all(value.isfinite().all() for value in load(run_folder())["agent"].values())


@pytest.fixture
def mean_return(script, tiny, capfd):
    """mean_return(name, norm_obs) after a short training on Scales; the best is 100, and chance 50."""

    def train(name, norm_obs):
        size = rollout_size(script, 64, 8)
        flags = {"total_timesteps": 24_576, "learning_rate": 2e-3, "hidden_size": 32, "eval_episodes": 20}
        script.train(tiny(env_id=f"probe_envs:{name}-v0", exp_name=str(norm_obs), norm_obs=norm_obs, **size | flags))
        return float(re.search(r"evaluation: mean return (\S+)", capfd.readouterr().out)[1])

    return train


@discrete_cases
@pytest.mark.parametrize("name", ["Scales4", "Scales6", "Missing"])
def test_very_different_sizes_and_missing_numbers_are_learned_by_default(script, mean_return, name):
    assert mean_return(name, script.Args().norm_obs) > 90


@discrete_cases
def test_tiny_numbers_are_learned_by_default_but_not_as_they_are(script, mean_return):
    assert mean_return("Tiny", script.Args().norm_obs) > 90
    assert mean_return("Tiny", False) < 75


def test_a_diverged_agent_is_saved_as_it_was_before(script, tiny, monkeypatch):
    """The gradient is NaN in the fourth update: three rollouts are kept, and the run can go on."""
    ppo_update = script.ppo_update
    calls = []

    def diverging(agent, optimizer, rollout, advantages, returns, *rest):
        calls.append(advantages)
        advantages = advantages * (np.nan if len(calls) == 4 else 1)
        return ppo_update(agent, optimizer, rollout, advantages, returns, *rest)

    monkeypatch.setattr(script, "ppo_update", diverging)
    with pytest.raises(FloatingPointError, match="--learning-rate"):
        script.train(tiny(checkpoint_interval=2))
    checkpoint = load(run_folder())
    assert checkpoint["step"] == 48
    assert all(value.isfinite().all() for value in checkpoint["agent"].values())
    script.train(tiny(resume=str(run_folder() / "checkpoint.pt")))


def test_rewards_of_any_size_leave_sound_statistics(agent):
    agent.update_return_stats(np.array([1e25, -1e25, 3e25]), 0.5)
    assert agent.return_std.isfinite()


def test_what_people_call_raises_exceptions(script, tiny):
    """A sweep that catches Exception goes on after a wrong flag."""
    with pytest.raises(ValueError, match="Unknown"):
        script.train(tiny(env_id="Unknown-v0"))
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        script.train(tiny(resume="missing.pt"))


REFUSED = {
    "--env-id Cartpole-v1": "CartPole",
    "--env-id CartPole-v9": "v1",
    "--env-id ALE/Pong-v5": "ale_py:ALE/Pong-v5",
    "--env-id no_such_module:MyEnv-v0": "no_such_module",
    "--env-id probe_envs:NeedsExtra-v0": "no_such_package",
    "--env-id HalfCheetah-v2": "gymnasium-robotics",
    "--env-id probe_envs:ObsSequence{family}-v0": "cannot flatten",
    "--env-id probe_envs:ObsMission{family}-v0": "cannot flatten",
    "--env-id probe_envs:ActTuple-v0": "has actions Tuple",
    "--env-id probe_envs:ActIntegerBox-v0": "has actions Box",
    "--env-kwargs {{size:1}}": "Error parsing --env-kwargs",
    "--env-kwargs [1]": "--env-kwargs must be a JSON object",
    '--env-kwargs {{"size":1}}': "unexpected keyword argument 'size'",
    "--evaluate missing.pt": "checkpoint missing.pt is missing or broken",
    "--resume missing.pt": "checkpoint missing.pt is missing or broken",
    "--batch-size 64": "--batch-size",
    "--learning-rate nan": "--learning-rate must be > 0",
    "--gamma 1.5": "--gamma and --gae-lambda must be from 0 to 1",
    "--gae-lambda -0.1": "--gamma and --gae-lambda must be from 0 to 1",
    "--num-minibatches 5000": "--num-minibatches",
    "--device no-such-device": "cpu",
    "--log-dir /dev/null": "Not a directory",
    "--seed -1": "--seed, --eval-episodes must be from 0",
    "--seed 2147483648": "--seed, --eval-episodes must be from 0",
    "--eval-episodes -1": "--seed, --eval-episodes must be from 0",
    "--capture-video --env-id probe_envs:Recorder{family}-v0": "'render_mode'",
    "--capture-video --env-id probe_envs:NoPicture{family}-v0": "--capture-video needs",
    "--capture-video --env-id probe_envs:NonePicture{family}-v0": "--capture-video needs",
    "--capture-video --env-id probe_envs:ListPicture{family}-v0": "--capture-video needs",
}
if not torch.cuda.is_available():
    REFUSED["--device cuda"] = "error: "


@once_per_script
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_work_is_refused_in_words_that_help(main, family, tmp_path, line):
    code, message = main(*line.format(family=family).split())
    assert code in (1, 2)
    assert REFUSED[line] in message
    assert "Traceback" not in message
    assert not [*tmp_path.iterdir()]


@once_per_script
def test_sizes_and_rates_of_0_are_refused(script):
    names = ["num_minibatches", "update_epochs", "hidden_size", "checkpoint_interval"]
    names += ["learning_rate", "clip_coef", "max_grad_norm"]
    names += ["num_envs"] if hasattr(script.Args, "num_envs") else []
    for name in names:
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be > 0"):
            script.Args(**{name: 0})


@once_per_script
def test_actions_of_another_kind_are_refused_by_name(script, main):
    env_id, name = {
        "ppo_discrete": ("Pendulum-v1", "ppo_continuous"),
        "ppo_continuous": ("CartPole-v1", "ppo_discrete"),
        "ppo_vector": ("probe_envs:ActMultiBinary-v0", "ppo_discrete"),
    }[script.__name__]
    code, message = main("--env-id", env_id)
    assert code == 1
    assert message.endswith(f"{name}.py")


@discrete_cases
def test_without_moviepy_filming_is_refused(script, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="moviepy"):
        script.train(tiny(env_id="CartPole-v1", capture_video=True))
    assert not [*tmp_path.iterdir()]


@once_per_script
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["init", "reset", "step"])
def test_an_error_of_the_environment_keeps_its_traceback(probe, main, place):
    """An error of any type, and the line of the environment in which it was raised."""
    for error in probe_envs.BUGS:
        if place == "init" and issubclass(error, gym.error.Error):
            continue  # as a dependency that is not installed
        with pytest.raises(error, match="a bug of mine") as raised:
            main("--env-id", probe(f"Bug{error.__name__}{place}"), "--num-minibatches", 1)
        assert ", in fail\n" in "".join(traceback.format_exception(raised.value))


def test_arguments_of_the_environment(script, probe, tiny, record):
    """They reach it and are kept in the checkpoint."""
    rollouts = record("collect_rollout")
    flags = {"env_id": probe("Argument"), "eval_episodes": 2}
    script.train(tiny(**flags, env_kwargs={"length": 3}))
    assert {episode["l"] for *_, episodes in rollouts for episode in episodes} == {3}
    assert load(run_folder())["args"]["env_kwargs"] == {"length": 3}


def test_an_environment_may_change_its_arguments(script, probe, tiny, record):
    """The next one gets them whole. Those of a vector environment share them, so there it is refused."""
    rollouts = record("collect_rollout")
    args = tiny(env_id=probe("Popping"), eval_episodes=2, env_kwargs={"config": {"reward": 3}})
    if hasattr(script, "make_envs"):
        with pytest.raises(ValueError, match="changes env_kwargs"):
            script.train(args)
    else:
        script.train(args)
        assert {episode["r"] for *_, episodes in rollouts for episode in episodes} == {3}
        assert load(run_folder())["args"]["env_kwargs"] == args.env_kwargs == {"config": {"reward": 3}}


@once_per_script
@pytest.mark.parametrize("data", [np.arange(3), {"rows": np.arange(3)}, object()], ids=["array", "nested", "object"])
def test_an_argument_may_be_anything(script, probe, data):
    """Arrays have no single truth value, and a copy of an object differs from it."""
    args = script.Args(env_id=probe("AnyArgument"), env_kwargs={"data": data})
    make_envs(script, args).close()


@discrete_cases
def test_arguments_of_the_environment_on_the_command_line(script, main):
    """A time limit that ends episodes early, on the lake that stays not slippery when only the limit changes."""
    later = "--total-timesteps", 256
    run = as_words({"total_timesteps": 128, "num_minibatches": 2, "eval_episodes": 2} | rollout_size(script, 32, 2))
    lake = "--env-id", "FrozenLake-v1", "--env-kwargs", '{"is_slippery": false, "max_episode_steps": 7}'
    assert main(*lake, *run) == (0, "")
    path = run_folder() / "checkpoint.pt"
    assert load(run_folder())["args"]["env_kwargs"] == {"is_slippery": False, "max_episode_steps": 7}
    other = "--env-kwargs", '{"max_episode_steps": 3}'
    for flags in [("--evaluate", path), ("--evaluate", path, *other), ("--resume", path, *other, *later)]:
        assert main(*flags) == (0, "")
    assert load(run_folder())["args"]["env_kwargs"] == {"is_slippery": False, "max_episode_steps": 3}


LAPLACE = """
    def sample(self, outputs, rng):
        return rng.laplace(outputs, self.log_std.detach().exp().numpy())

    def greedy(self, outputs):
        return outputs

    def log_prob_and_entropy(self, outputs, actions):
        policy = torch.distributions.Laplace(outputs, self.log_std.exp())
        return policy.log_prob(actions).sum(-1), policy.entropy().sum(-1)


"""


@only(("ppo_continuous", "Box"))
def test_another_distribution_is_three_methods(script, edited, capfd):
    """A Laplace distribution in place of the Gaussian learns Pendulum."""
    source = Path(script.__file__).read_text()
    own = source[source.index("\n    def sample(") : source.index("def make_env(")]
    copy = runpy.run_path(edited((own, LAPLACE)))
    copy["train"](copy["Args"](env_id="Pendulum-v1", total_timesteps=40_000, gamma=0.95))
    assert float(re.search(r"evaluation: mean return (\S+)", capfd.readouterr().out)[1]) > -400


@once_per_script
@pytest.mark.filterwarnings("ignore")
def test_another_network_alone_says_what_to_do_and_trains_by_the_flag(tiny, edited):
    old = "self.backbone = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())"
    for new in (
        "self.backbone = nn.Sequential(first, nn.LayerNorm(args.hidden_size), nn.ReLU(), second, nn.ReLU())",
        "self.backbone = nn.Sequential(first, nn.Tanh(), second, nn.Tanh())",
        "self.backbone = nn.GRUCell(*obs_space.shape, args.hidden_size)",
    ):
        train = runpy.run_path(edited((old, new)))["train"]
        with pytest.raises((KeyError, ValueError)) as raised:
            train(tiny(hidden_size=8))
        assert "--no-numpy-actor" in "".join(traceback.format_exception(raised.value))
        shutil.rmtree("runs", ignore_errors=True)
        train(tiny(hidden_size=8, numpy_actor=False))
        shutil.rmtree("runs")


def test_a_reward_may_be_an_array_of_one_number(script, probe, tiny, record):
    rollouts = record("collect_rollout")
    rewards = []
    for name in ("ArrayReward", "Recorder"):
        rollouts.clear()
        script.train(tiny(env_id=probe(name), log_dir=name))
        rewards.append(np.concatenate([transitions["rewards"] for _, transitions, *_ in rollouts]))
    np.testing.assert_array_equal(*rewards)


@once_per_script
def test_a_wrapper_may_give_an_array_of_one_number(script, tiny, edited):
    """Where wrappers that sum several rewards belong."""
    wrapper = "gym.wrappers.TransformReward(env, lambda reward: np.array([reward]))"
    edits = {
        "# Wrappers that end episodes go here": f"env = {wrapper}",
        "wrappers = []": f"wrappers = [lambda env: {wrapper}]",
    }
    source = Path(script.__file__).read_text()
    edit = next(edit for edit in edits.items() if edit[0] in source)
    runpy.run_path(edited(edit))["train"](tiny())


def test_an_evaluation_plays_few_episodes_too_many(script, probe, tiny, record):
    """Whatever the length of a rollout: a step of some environments takes a second."""
    args = tiny(
        env_id=probe("Argument"), env_kwargs={"length": 20}, eval_episodes=3, num_steps=1024, num_minibatches=99
    )
    env = make_envs(script, args)
    agent = make_agent(script, env, args)
    rollouts = record("collect_rollout")
    script.evaluate(agent, env, args)
    assert 3 <= sum(len(episodes) for *_, episodes in rollouts) <= 6


def test_an_empty_log_dir_is_this_folder(script, tiny):
    """As of a variable of the shell that is not set."""
    script.train(tiny(log_dir=""))
    (path,) = Path().glob("*/checkpoint.pt")
    assert "__1__" in path.parent.name


@dataclass
class Config:
    """For an environment."""

    length: int


def test_arguments_keep_their_types(script, action_space, tiny):
    seen = []

    def make(config):
        seen.append(config)
        return probe_envs.Chain(action_space, [1.0] * config.length)

    gym.register("Configured-v0", make)
    script.train(tiny(env_id="Configured-v0", env_kwargs={"config": Config(3)}))
    assert Config(3) in seen
    assert all(config == Config(3) for config in seen)
    del gym.registry["Configured-v0"]


@single_cases
def test_an_evaluation_plays_the_problem_that_was_trained(script, action_space, tiny, capsys):
    """An environment may draw it when it is made. (ppo_vector.py makes another, because it evaluates in one.)"""
    problems = iter((1.0, 2.0, 3.0))
    gym.register("Drawn-v0", lambda: probe_envs.Chain(action_space, [next(problems)]))
    script.train(tiny(env_id="Drawn-v0", eval_episodes=2))
    assert "evaluation: mean return 1.0 +/- 0.0 over 2 episodes" in capsys.readouterr().out
    del gym.registry["Drawn-v0"]


def test_an_evaluation_ends_where_no_episode_does(script, tiny, monkeypatch):
    """After a million steps, with a sentence that says what to do."""
    calls = []

    def endless(env, agent, obs, *rest, num_steps):
        calls.append(num_steps)
        return (None, None, obs, *rest[:-1], [])

    monkeypatch.setattr(script, "collect_rollout", endless)
    args = tiny(eval_episodes=3)
    env = make_envs(script, args)
    with pytest.raises(ValueError, match="no greedy episode ended: set max_episode_steps"):
        script.evaluate(None, env, args)
    assert sum(calls) == 1_000_000


@once_per_script
def test_an_error_closes_the_environment(script, probe, tiny, main, monkeypatch):
    """So that a sweep in which one run fails can open the next, where only one may be open."""
    script.train(tiny(env_id=probe("Trouble")))
    monkeypatch.setattr("probe_envs.Trouble.steps", 0)
    monkeypatch.setenv("PROBE_TROUBLE", "13 reward nan")
    closed = []
    monkeypatch.setattr("probe_envs.Trouble.close", lambda self: closed.append(self), raising=False)
    with pytest.raises(ValueError):
        script.train(tiny(env_id=probe("Trouble"), log_dir="failed"))
    assert closed
    closed.clear()
    monkeypatch.setattr("probe_envs.Trouble.steps", 0)
    code, _ = main("--evaluate", run_folder() / "checkpoint.pt", "--eval-episodes", 20)
    assert code == 1 and closed


@once_per_script
@pytest.mark.parametrize("eval_episodes", [0, 2])
def test_an_environment_is_closed_once(script, tiny, main, monkeypatch, eval_episodes):
    """A second time may be an error, as where a connection is gone."""
    closed = []
    monkeypatch.setattr("probe_envs.Recorder.close", lambda self: closed.append(self))
    script.train(tiny(eval_episodes=eval_episodes))
    assert main("--evaluate", run_folder() / "checkpoint.pt", "--eval-episodes", 1) == (0, "")
    assert len({*map(id, closed)}) == len(closed) > 1


@once_per_script
def test_a_render_mode_of_ones_own_is_kept(script, tiny, monkeypatch):
    """As of a window for the checkpoint of a filmed run: the check that follows refuses to film it."""
    made = []
    for name in ("gymnasium.make", "gymnasium.make_vec"):
        monkeypatch.setattr(name, lambda *args, **kwargs: made.append(kwargs["render_mode"]))
    with pytest.raises(AttributeError):
        script.train(tiny(capture_video=True, env_kwargs={"render_mode": "human"}))
    assert made == ["human"]


@once_per_script
@pytest.mark.filterwarnings("ignore")
def test_a_film_of_a_checkpoint_is_refused_as_that_of_a_run(script, probe, tiny, main):
    script.train(tiny(env_id=probe("NoPicture")))
    before = sorted(Path("runs").rglob("*"))
    code, message = main("--evaluate", run_folder() / "checkpoint.pt", "--eval-episodes", 1, "--capture-video")
    assert (code, message[:30]) == (1, "error: --capture-video needs m")
    assert sorted(Path("runs").rglob("*")) == before


@once_per_script
@pytest.mark.parametrize("name", ["check", "mkdir", "load_state_dict"])
def test_an_error_of_the_environment_in_a_function_that_the_scripts_know_keeps_its_traceback(probe, main, name):
    """The scripts' own errors in functions of these names are one line."""
    with pytest.raises((ValueError, FileExistsError, RuntimeError)):
        main("--env-id", probe(f"Own_{name}"))
