"""Whole runs: reproducible, resumable, and what they print, write and refuse."""

import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CASES, OBS_SPACE, SCRIPTS, Player, assert_same, once_per_script, read_scalars, run_folder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

TAGS = {
    *("charts/episodic_return", "charts/episodic_length", "charts/episodic_return_20"),
    *("charts/learning_rate", "charts/SPS", "eval/mean_return"),
    *("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"),
    *("losses/approx_kl", "losses/clipfrac", "losses/explained_variance"),
}
STATUS = r" *\d+%  step \d+  mean return (nan|-?\d+\.\d)  \d+ steps/s  \d+ s left *"
SOLVED = r"solved: mean return -?\d+\.\d over the last 20 episodes at step \d+"
EVALUATION = r"evaluation: mean return -?\d+\.\d \+/- \d+\.\d over 3 episodes"
CHECKPOINT = r"checkpoint: (.+/checkpoint\.pt)"


def load(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


@pytest.fixture
def flags(probe, script):
    """A run of 10 iterations on a probe environment, a checkpoint after every second one."""
    size = {"num-envs": 2, "num-steps": 16} if hasattr(script.Args, "num_envs") else {"num-steps": 32}
    size |= {"env-id": probe("Trouble"), "total-timesteps": 320, "num-minibatches": 2, "checkpoint-interval": 2}
    pairs = size | {"update-epochs": 2, "eval-episodes": 3, "hidden-size": 8}
    return [word for name, value in pairs.items() for word in (f"--{name}", str(value))]


def test_a_run_prints_its_progress_and_repeats_to_the_bit(script, tiny, capsys):
    folders = []
    for name in ("one", "other"):
        script.train(tiny(log_dir=name, eval_episodes=3, norm_obs=True))
        *status, evaluation, checkpoint = capsys.readouterr().out.splitlines()
        assert len(status) == 4
        assert all(re.fullmatch(STATUS, line) for line in status)
        assert re.fullmatch(EVALUATION, evaluation)
        folders.append(run_folder(name))
        assert Path(re.fullmatch(CHECKPOINT, checkpoint)[1]) == folders[-1] / "checkpoint.pt"
    one, other = folders
    assert read_scalars(one) == read_scalars(other)
    assert {*read_scalars(one), "charts/SPS"} == TAGS
    assert_same(load(one)["agent"], load(other)["agent"])
    assert {*load(one)} == {"args", "step", "agent", "optimizer"}
    script.train(tiny(log_dir="another", seed=2))
    assert read_scalars(one)["losses/policy_loss"] != read_scalars(run_folder("another"))["losses/policy_loss"]


@once_per_script
def test_killed_and_resumed_the_curve_goes_on(script, launch, flags, tmp_path):
    """The environment kills the process in step 230. Two resumptions are equal."""
    killed = launch(script.__file__, *flags, "--log-dir", "runs", PROBE_TROUBLE=f"230 signal {signal.SIGKILL:d}")
    assert killed.returncode == -signal.SIGKILL
    folder = run_folder(tmp_path / "runs")
    saved = load(folder)["step"]
    assert 0 < saved <= 256  # ppo_vector.py counts resets too
    twin = shutil.copytree(folder, tmp_path / "twin")
    time.sleep(1.01 - time.time() % 1)  # TensorBoard reads event files in the order of their seconds
    for run in (folder, twin):
        resumed = launch(script.__file__, "--resume", run / "checkpoint.pt", "--total-timesteps", 400)
        assert resumed.returncode == 0, resumed.stderr
    assert_same(load(folder)["agent"], load(twin)["agent"])
    assert load(folder)["step"] >= 400
    assert load(folder)["args"]["hidden_size"] == 8
    steps = [step for step, _ in read_scalars(folder)["losses/entropy"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == load(folder)["step"]
    assert steps.count(saved + 32) == 1
    rates = dict(read_scalars(folder)["charts/learning_rate"])
    assert rates[saved + 32] == pytest.approx(script.Args().learning_rate * (1 - saved / 400))
    evaluated = launch(script.__file__, "--evaluate", folder / "checkpoint.pt")
    assert evaluated.stdout.splitlines()[-1] == resumed.stdout.splitlines()[-2]


@once_per_script
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint(script, launch, flags, tmp_path, number, code):
    result = launch(
        "-c",
        f"""
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = {[script.__file__, *flags]!r}
runpy.run_path({script.__file__!r}, run_name="__main__")
""",
        PROBE_TROUBLE=f"170 signal {number:d}",
    )
    assert result.returncode == code
    assert result.stderr == ""
    assert re.fullmatch(CHECKPOINT, result.stdout.splitlines()[-1])
    assert 96 < load(run_folder(tmp_path / "runs"))["step"] <= 224  # ppo_vector.py counts resets too


@once_per_script
def test_an_error_in_the_environment_shows_its_traceback_and_leaves_a_checkpoint(script, launch, probe, tmp_path):
    for error, line in {"import": "ImportError: mine", "float": "FloatingPointError: mine"}.items():
        run = "--num-steps", 16, "--num-minibatches", 2, "--log-dir", error
        result = launch(script.__file__, "--env-id", probe("Failing"), *run, PROBE_ERROR=error)
        assert result.returncode == 1
        assert result.stderr.startswith("Traceback")
        assert line in result.stderr
        assert load(run_folder(tmp_path / error))["step"] > 0


@once_per_script
def test_nan_is_one_line_and_leaves_a_sound_checkpoint(script, launch, flags, tmp_path):
    result = launch(script.__file__, *flags, PROBE_TROUBLE="170 reward nan")
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*NaN.*\n", result.stderr)
    assert all(torch.isfinite(value).all() for value in load(run_folder(tmp_path / "runs"))["agent"].values())


REFUSED = {
    "--env-id Cartpole-v1": "CartPole",
    "--env-id CartPole-v9": "v1",
    "--env-id no_such_module:MyEnv-v0": "no_such_module",
    "--env-id probe_envs:NeedsExtra-v0": "no_such_package",
    "--env-id probe_envs:ObsSequence{family}-v0": "fixed-size observations",
    "--env-id probe_envs:ActTuple-v0": "actions",
    "--env-id probe_envs:ActIntegerBox-v0": "actions",
    "--evaluate missing.pt": "missing.pt",
    "--resume missing.pt": "missing.pt",
    "--batch-size 64": "--batch-size",
    "--learning-rate 0": "--learning-rate must be greater than 0",
    "--learning-rate nan": "--learning-rate must be greater than 0",
    "--gamma 1.5": "--gamma",
    "--num-minibatches 0": "--num-minibatches",
    "--device no-such-device": "cpu",
    "--seed -1": "--seed",
}


@once_per_script
def test_what_cannot_work_is_refused_in_words_that_help(script, family, tmp_path, monkeypatch, capsys):
    import runpy
    import sys

    for line, word in REFUSED.items():
        monkeypatch.setattr(sys, "argv", [script.__file__, *line.format(family=family).split()])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(script.__file__, run_name="__main__")
        message = " ".join([str(stop.value.code), *re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split()])
        assert stop.value.code not in (0, None)
        assert word in message, line
        assert not [*tmp_path.iterdir()], line


@once_per_script
def test_actions_of_another_kind_are_refused_by_name(script, tiny):
    other = {"ppo_discrete": "Pendulum-v1", "ppo_continuous": "CartPole-v1"}.get(script.__name__)
    if other:
        with pytest.raises(SystemExit, match="ppo_"):
            script.train(tiny(env_id=other))


def test_solved_run_stops_early_and_says_when(script, tiny, capsys):
    script.train(tiny(target_return=-1000.0, total_timesteps=100_000))
    *_, solved, _ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(SOLVED, solved)
    assert load(run_folder())["step"] == int(solved.split()[-1]) < 1000


def test_on_a_terminal_one_line_is_written_over_itself(script, tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    script.train(tiny(total_timesteps=16 * 30, update_epochs=1, eval_episodes=3))
    *status, end = capsys.readouterr().out.split("\r")
    assert len(status) == 30
    assert "\n" not in "".join(status)
    _, evaluation, checkpoint = end.splitlines()
    assert re.fullmatch(EVALUATION, evaluation)
    assert re.fullmatch(CHECKPOINT, checkpoint)


def test_curves_show_episodes_and_rates_over_environment_steps(script, tiny, record):
    rollouts, expected, window = record("collect_rollout"), {}, []
    script.train(tiny(total_timesteps=160, learning_rate=0.01))
    for i, (*_, episodes) in enumerate(rollouts):
        step = 16 * (i + 1)
        expected.setdefault("charts/learning_rate", []).append((step, pytest.approx(0.01 * (1 - 16 * i / 160))))
        if episodes:
            returns, lengths = zip(*episodes, strict=True)
            window += returns
            for name, numbers in (("return", returns), ("length", lengths), ("return_20", window[-20:])):
                expected.setdefault(f"charts/episodic_{name}", []).append((step, pytest.approx(np.mean(numbers))))
    scalars = read_scalars(run_folder())
    assert len(window) > 20
    assert {tag: scalars[tag] for tag in expected} == expected


def test_all_flags_are_hyperparameters_in_tensorboard(script, tiny):
    script.train(tiny())
    events = EventAccumulator(str(run_folder())).Reload()
    metadata = {tag: events.SummaryMetadata(tag).plugin_data for tag in events.PluginTagToContent("hparams")}
    start = HParamsPluginData.FromString(metadata["_hparams_/session_start_info"].content).session_start_info.hparams
    assert {*start} == {*load(run_folder())["args"]}
    assert start["learning_rate"].number_value == script.Args().learning_rate


@pytest.mark.parametrize("norm_obs, norm_value", [(True, True), (False, False)])
def test_statistics_cover_all_observations_and_returns(script, tiny, record, norm_obs, norm_value):
    rollouts, targets = record("collect_rollout"), record("compute_gae")
    agent = script.train(tiny(total_timesteps=80, norm_obs=norm_obs, norm_value=norm_value))
    obs = torch.cat([rollout["obs"] for rollout, *_ in rollouts])
    returns = [x[r.get("valid", ...)].ravel() for (r, *_), (_, x) in zip(rollouts, targets, strict=True)]
    for used, stats, rows in (
        (norm_obs, agent.obs_stats or script.RunningMeanStd((3,)), obs.numpy()),
        (norm_value, agent.return_stats, np.concatenate(returns)),
    ):
        assert stats.count == used * len(rows)
        np.testing.assert_allclose(stats.mean, rows.mean(0) if used else 0, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(stats.std, rows.std(0) if used else 1, rtol=1e-3)


def test_only_one_environment_is_open_at_a_time(script, probe, tiny):
    if hasattr(script.Args, "num_envs"):
        script.train(tiny(env_id=probe("Alone"), num_envs=1, num_steps=16, eval_episodes=1))
    else:
        script.train(tiny(env_id=probe("Alone"), eval_episodes=1))


def test_the_seed_reaches_the_global_generator(script, probe, tiny):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        script.train(tiny(env_id=probe("GlobalRandom"), seed=seed, log_dir=name))
    one, again, other = (read_scalars(run_folder(name))["charts/episodic_return"] for name in ("one", "again", "other"))
    assert one == again != other


@once_per_script
def test_a_reward_wrapper_leaves_the_reported_returns_alone(script, launch, tmp_path):
    vector = "vector." if hasattr(script, "make_envs") else ""
    name = "envs" if vector else "env"
    line = f"    {name} = gym.wrappers.{vector}RecordEpisodeStatistics({name})\n"
    source = Path(script.__file__).read_text()
    assert line in source
    wrapper = f"    {name} = gym.wrappers.{vector}TransformReward({name}, lambda reward: 0 * reward)\n"
    (tmp_path / "edited.py").write_text(source.replace(line, line + wrapper))
    env_id = "Pendulum-v1" if script.__name__ == "ppo_continuous" else "CartPole-v1"
    result = launch("edited.py", "--env-id", env_id, "--total-timesteps", 2048, "--eval-episodes", 3, PYTHONPATH="")
    assert "mean return 0.0 " not in result.stdout.splitlines()[-2]
    assert re.fullmatch(EVALUATION, result.stdout.splitlines()[-2]), result.stderr


@once_per_script
def test_a_copy_of_the_script_runs_alone(script, launch, tmp_path):
    shutil.copy(script.__file__, tmp_path / "my_ppo.py")
    flags = "--total-timesteps=128 --num-steps=64 --num-minibatches=2 --eval-episodes=3 --hidden-size=8"
    result = launch("my_ppo.py", *flags.split(), PYTHONPATH="")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(EVALUATION, result.stdout.splitlines()[-2])
    assert {path.name for path in tmp_path.iterdir()} == {"my_ppo.py", "runs"}


def test_checkpoint_is_replaced_whole(script, agent, tiny, tmp_path, monkeypatch):
    """A write that breaks off, as on a full disk, leaves the checkpoint from before."""
    path, optimizer = tmp_path / "checkpoint.pt", torch.optim.Adam(agent.parameters())
    script.save_checkpoint(path, tiny(), 1, agent, optimizer)

    def half_written(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        script.save_checkpoint(path, tiny(), 2, agent, optimizer)
    assert load(tmp_path)["step"] == 1


@pytest.mark.filterwarnings("error:.*Overwriting existing videos")
@pytest.mark.parametrize("case", [case for case in CASES if "Discrete" in case], ids="-".join, indirect=True)
def test_video(script, tiny):
    script.train(tiny(env_id="CartPole-v1", capture_video=True, eval_episodes=1))
    videos = [*run_folder().glob("videos/*.mp4")]
    assert videos
    assert all(b"ftyp" in video.read_bytes()[:16] for video in videos)  # the first box of an MP4 file


@pytest.mark.parametrize("case", [case for case in CASES if "Discrete" in case], ids="-".join, indirect=True)
def test_video_fails_before_the_training(script, tiny):
    with pytest.raises(Exception, match="render"):
        script.train(tiny(env_id="probe_envs:PlainDiscrete-v0", capture_video=True))
    assert not Path("runs").exists()


def environments():
    """The newest version of every environment that this installation can make, with its kind of actions."""
    import gymnasium as gym

    newest = {}
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.version or 0):
        if getattr(spec.entry_point, "__module__", None) != "probe_envs":
            newest[spec.namespace, spec.name] = spec.id
    return sorted(newest.values())


@pytest.mark.filterwarnings("ignore")
@once_per_script
@pytest.mark.parametrize("env_id", environments())
def test_gymnasium_environment_is_trained_or_refused(script, tiny, env_id):
    import gymnasium as gym

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
        with pytest.raises((SystemExit, ImportError), match=re.escape(f"error: {env_id}") + "|pip install"):
            script.train(args)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Dict", "Tuple", "Discrete", "MultiDiscrete", "MultiBinary", "Image", "Float64"])
def test_observations_of_any_space_are_flattened(script, probe, tiny, name):
    script.train(tiny(env_id=probe(f"Obs{name}")))


@pytest.mark.filterwarnings("ignore")
def test_actions_fill_the_space(script, family):
    """The environment itself asserts that they lie in it."""
    import probe_envs

    for name, space in probe_envs.ACTION_SPACES[family].items():
        if script.__name__ == "ppo_vector" and "Multi" in name:
            continue
        env_id = f"probe_envs:{name}-v0"
        vector = hasattr(script, "make_envs")
        env = script.make_envs(env_id, 2) if vector else script.make_env(env_id)
        args = script.Args(hidden_size=8, norm_obs=False, **{"log_std_init": 1.0} if family == "Box" else {})
        agent = script.ActorCritic(OBS_SPACE, env.single_action_space if vector else env.action_space, args)
        player = Player(script, agent, env_id)
        player.play(300, np.random.default_rng(0))
        for log in player.logs:
            actions = np.array([action for _, action, *_ in log]).reshape(len(log), -1)
            if family == "Box":
                low, high = space.low.ravel(), space.high.ravel()
                np.testing.assert_array_equal(actions.min(0)[np.isfinite(low)], low[np.isfinite(low)])
                np.testing.assert_array_equal(actions.max(0)[np.isfinite(high)], high[np.isfinite(high)])
            else:
                seen = {action.tobytes() for action in actions}
                choices = getattr(space, "nvec", [2] * actions.shape[1] if "Binary" in name else getattr(space, "n", 0))
                assert len(seen) >= 0.8 * np.prod(choices)
