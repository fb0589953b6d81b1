"""Whole runs: reproducible, resumable, and what they print, write and refuse."""

import copy
import itertools
import re
import runpy
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    CHECKPOINT,
    EVALUATION,
    SOLVED,
    STATUS,
    TAGS,
    assert_same,
    discrete_cases,
    load,
    once_per_script,
    read_scalars,
    rollout_size,
    run_folder,
    statistics,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


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
def test_progress_is_counted_in_steps_of_this_process(script, tiny, capsys, monkeypatch):
    """Of a clock that goes on by 2 seconds when it is read, which is once per rollout of 16 steps: 8 steps/s."""
    clock = itertools.count(0, 2)
    monkeypatch.setattr(script, "time", SimpleNamespace(time=time.time, perf_counter=lambda: next(clock)))
    script.train(tiny(total_timesteps=72))
    script.train(tiny(total_timesteps=120, resume=str(run_folder() / "checkpoint.pt")))
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps/s" in line]
    numbers = [re.fullmatch(r" *(\d+)%  step (\d+)  mean return \S+  (\d+) steps/s  (\S+) s left *", x) for x in lines]
    expected = [(round(100 * step / 72), step, 8, max(72 - step, 0) // 8) for step in range(16, 81, 16)]
    expected += [(round(100 * step / 120), step, 8, max(120 - step, 0) // 8) for step in range(96, 129, 16)]
    assert [tuple(map(int, match.groups())) for match in numbers] == expected


@once_per_script
def test_a_run_does_not_write_into_the_folder_of_another(script, tiny, monkeypatch):
    """As of two runs of one name that start in the same second."""
    monkeypatch.setattr("time.time", lambda: 1.0)
    script.train(tiny())
    with pytest.raises(FileExistsError):
        script.train(tiny(total_timesteps=128))
    assert load(run_folder())["step"] == 64


@once_per_script
def test_the_name_of_an_environment_makes_one_folder(script, probe, tiny):
    """Slashes and colons in it do not."""
    script.train(tiny(env_id=probe("probe/Recorder")))
    assert run_folder().name.startswith("probe_envs_probe_Recorder")
    assert (run_folder() / "checkpoint.pt").is_file()


@once_per_script
def test_a_run_without_an_end_of_an_episode_has_no_returns(script, probe, tiny):
    script.train(tiny(env_id=probe("Endless")))
    assert not [tag for tag in read_scalars(run_folder()) if "episodic" in tag]


def test_a_run_takes_one_thread(script, tiny):
    torch.set_num_threads(2)
    script.train(tiny())
    assert torch.get_num_threads() == 1


def test_solved_is_a_mean_of_the_target_over_20_episodes(script, probe, tiny, capsys, record):
    """Each episode returns 1. The run ends early and says when."""
    rollouts = record("collect_rollout")
    script.train(tiny(env_id=probe("OneStep"), target_return=1.0, total_timesteps=1000))
    *_, solved, _ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(SOLVED, solved)
    assert load(run_folder())["step"] == int(solved.split()[-1]) == 16 * len(rollouts)
    counts = [len(episodes) for *_, episodes in rollouts]
    assert sum(counts[:-1]) < 20 <= sum(counts)


def test_on_a_terminal_one_line_is_written_over_itself(script, tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    script.train(tiny(total_timesteps=16 * 30, update_epochs=1, eval_episodes=3))
    *status, end = capsys.readouterr().out.split("\r")
    assert len(status) == 29
    assert "\n" not in "".join(status)
    last, evaluation, checkpoint = end.splitlines()
    assert last.startswith("100%  step 480 ")
    assert re.fullmatch(EVALUATION, evaluation)
    assert re.fullmatch(CHECKPOINT, checkpoint)


def test_curves_show_episodes_and_rates_over_environment_steps(script, tiny, record):
    rollouts = record("collect_rollout")
    expected = {}
    window = []
    script.train(tiny(total_timesteps=160, learning_rate=0.01))
    for i, (*_, episodes) in enumerate(rollouts):
        step = 16 * (i + 1)
        expected.setdefault("charts/learning_rate", []).append((step, pytest.approx(0.01 * (1 - 16 * i / 160))))
        if episodes:
            returns, lengths = zip(*((episode["r"], episode["l"]) for episode in episodes), strict=True)
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
    rollouts = record("collect_rollout")
    targets = record("compute_gae")
    agent = script.train(tiny(total_timesteps=80, norm_obs=norm_obs, norm_value=norm_value))
    rms, mean, std = statistics(rollouts, targets)
    np.testing.assert_allclose(agent.obs_rms, rms if norm_obs else 1, rtol=1e-4)
    np.testing.assert_allclose(agent.return_mean, mean if norm_value else 0, rtol=1e-4)
    np.testing.assert_allclose(agent.return_std, std if norm_value else 1, rtol=1e-4)


@once_per_script
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("capture_video", [False, True])
def test_only_one_environment_is_open_at_a_time(script, probe, tiny, capture_video):
    flags = {"eval_episodes": 1, "capture_video": capture_video} | rollout_size(script, 16, 1)
    script.train(tiny(env_id=probe("Filmed"), **flags))


@pytest.mark.parametrize("generator", ["GlobalRandom", "PythonRandom"])
def test_the_seed_reaches_the_global_generators(script, probe, tiny, generator):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        script.train(tiny(env_id=probe(generator), seed=seed, log_dir=name))
    one, again, other = (read_scalars(run_folder(name))["charts/episodic_return"] for name in ("one", "again", "other"))
    assert one == again != other


@once_per_script
@pytest.mark.parametrize("name", ["Recorder", "GlobalRandom", "PythonRandom"])
def test_an_evaluation_repeats_by_its_seed(script, probe, tiny, main, monkeypatch, name):
    """The seed reaches the environment and the global generators."""
    script.train(tiny(env_id=probe(name)))
    lines = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: lines.append(words))
    for seed in (1, 1, 2):
        main("--evaluate", run_folder() / "checkpoint.pt", "--eval-episodes", 3, "--seed", seed)
    one, again, other = lines
    assert one == again != other


@once_per_script
def test_a_reward_wrapper_leaves_the_reported_returns_alone(script, edited, capsys):
    name, wrappers = ("envs", "vector") if hasattr(script, "make_envs") else ("env", "gym.wrappers")
    line = f'    {name} = {wrappers}.RecordEpisodeStatistics({name}, stats_key="ppo_episode")'
    wrapper = f"\n    {name} = {wrappers}.TransformReward({name}, lambda reward: 0 * reward)"
    copy = runpy.run_path(edited((line, line + wrapper)))
    env_id = "Pendulum-v1" if script.__name__ == "ppo_continuous" else "CartPole-v1"
    copy["train"](copy["Args"](env_id=env_id, total_timesteps=2048, eval_episodes=3))
    evaluation = capsys.readouterr().out.splitlines()[-2]
    assert "mean return 0.0 " not in evaluation
    assert re.fullmatch(EVALUATION, evaluation)


@once_per_script
def test_a_copy_of_the_script_runs_alone(script, launch, tmp_path):
    shutil.copy(script.__file__, tmp_path / "my_ppo.py")
    flags = "--total-timesteps=128 --num-steps=64 --num-minibatches=2 --eval-episodes=3 --hidden-size=8"
    result = launch("my_ppo.py", *flags.split(), PYTHONPATH="")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(EVALUATION, result.stdout.splitlines()[-2])
    assert {path.name for path in tmp_path.iterdir()} == {"my_ppo.py", "runs"}


@pytest.mark.filterwarnings("error:.*Overwriting existing videos")
@discrete_cases
def test_video(script, tiny, main):
    """Of the evaluation at the end of a run, and of that of a checkpoint."""

    def assert_filmed():
        videos = [*run_folder().glob("videos/*.mp4")]
        assert videos
        assert all(b"ftyp" in video.read_bytes()[:16] for video in videos)  # the first box of an MP4 file

    script.train(tiny(env_id="CartPole-v1", eval_episodes=1, capture_video=True))
    assert_filmed()
    shutil.rmtree(run_folder() / "videos")
    assert main("--evaluate", run_folder() / "checkpoint.pt") == (0, "")
    assert_filmed()


@once_per_script
def test_environment_and_actions_draw_different_numbers(script, tiny, record):
    """default_rng(seed) and env.reset(seed=seed) are one generator."""

    def draw(env, *args):
        single = getattr(env.unwrapped, "envs", [env])
        generators = [args[-1], *(each.unwrapped.np_random for each in single)]
        return [copy.deepcopy(generator).random(1000) for generator in generators]

    draws = record("collect_rollout", draw)
    script.train(tiny(vectorization_mode="sync") if hasattr(script, "make_envs") else tiny())
    assert len(np.unique(draws[0])) == np.size(draws[0]) >= 2000


def test_a_rate_set_by_an_edited_update_stays_without_annealing(script, tiny, monkeypatch):
    """As by torch's schedulers, or a rate that follows the KL."""
    update = script.ppo_update

    def halve(agent, optimizer, *rest):
        metrics = update(agent, optimizer, *rest)
        optimizer.param_groups[0]["lr"] /= 2
        return metrics

    monkeypatch.setattr(script, "ppo_update", halve)
    script.train(tiny(anneal_lr=False, learning_rate=0.08))
    rates = [rate for _, rate in read_scalars(run_folder())["charts/learning_rate"]]
    assert rates == pytest.approx([0.04, 0.02, 0.01, 0.005])


def test_a_length_of_rollouts_that_changes_is_counted(script, tiny, monkeypatch):
    """As of a curriculum: each rollout is twice as long as the one before, the first one too."""
    collect_rollout = script.collect_rollout
    lengths = []
    args = tiny(total_timesteps=200)

    def twice_as_long(*arguments):
        lengths.append(2 * (lengths or [args.num_steps])[-1])
        return collect_rollout(*arguments, num_steps=lengths[-1])

    monkeypatch.setattr(script, "collect_rollout", twice_as_long)
    script.train(args)
    assert [step for step, _ in read_scalars(run_folder())["losses/entropy"]] == [32, 96, 224]


@once_per_script
def test_the_entropy_bonus_stays_without_annealing(script, tiny, record):
    fractions = record("ppo_update", lambda *args: args[-1])
    script.train(tiny(anneal_lr=False))
    assert fractions == [1] * 4
