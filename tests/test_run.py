"""Whole runs: reproducible, resumable, and what they print and write."""

import copy
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CASES, all_rows, assert_same_weights, once_per_script, read_scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

TESTS = Path(__file__).parent
TAGS = {
    *("charts/episodic_return", "charts/episodic_length", "charts/episodic_return_20"),
    *("charts/learning_rate", "charts/SPS", "eval/mean_return"),
    *("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"),
    *("losses/old_approx_kl", "losses/approx_kl", "losses/clipfrac", "losses/explained_variance"),
}

STATUS = r" *\d+%  step \d+  mean return (nan|-?\d+\.\d)  \d+ steps/s  \d+ s left *"
SOLVED = r"solved: mean return -?\d+\.\d over the last 20 episodes at step \d+"
EVALUATION = r"evaluation: mean return -?\d+\.\d \+/- \d+\.\d over 3 episodes"
CHECKPOINT = r"checkpoint: (.+/checkpoint\.pt)"


def load(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


def run_folder(log_dir):
    (folder,) = Path(log_dir).iterdir()
    return folder


def assert_same_run(one, other):
    """Two run folders hold the same weights, optimizer and curves."""
    assert_same_weights(load(one)["agent"], load(other)["agent"])
    assert_same_weights(load(one)["optimizer"]["state"], load(other)["optimizer"]["state"])
    assert read_scalars(one) == read_scalars(other)


@pytest.fixture(scope="session")
def flags(probe, script):
    """A run of 10 iterations on a probe environment, a checkpoint after every second one, in a fraction of a second."""
    size = {"num-envs": 2, "num-steps": 16} if hasattr(script.Args, "num_envs") else {"num-steps": 32}
    size |= {"env-id": probe("Trouble"), "total-timesteps": 320, "num-minibatches": 2, "checkpoint-interval": 2}
    pairs = size | {"update-epochs": 2, "eval-episodes": 3, "hidden-size": 8}
    return [word for name, value in pairs.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def whole(command, flags, tmp_path_factory):
    """An uninterrupted run: its result, with its folder."""
    log_dir = tmp_path_factory.mktemp("whole")
    result = command(*flags, "--log-dir", log_dir)
    assert result.code == 0
    result.folder = run_folder(log_dir)
    return result


@pytest.fixture
def trouble(monkeypatch):
    """trouble("100 signal 2"): what the Trouble environment does in which of its steps."""

    def trouble(plan):
        monkeypatch.setattr("probe_envs.Trouble.steps", 0)
        monkeypatch.setenv("PROBE_TROUBLE", plan)

    return trouble


@pytest.fixture
def resume(command):
    """Go on with the run in a folder."""

    def resume(folder, *flags):
        time.sleep(1.01 - time.time() % 1)  # TensorBoard reads event files in the order of their seconds
        return command("--resume", folder / "checkpoint.pt", *flags)

    return resume


def test_same_seed_same_run(command, flags, whole, tmp_path):
    command(*flags, "--log-dir", tmp_path)
    assert_same_run(run_folder(tmp_path), whole.folder)


def test_another_seed_another_run(command, flags, whole, tmp_path):
    command(*flags, "--log-dir", tmp_path, "--seed", 2)
    one, other = read_scalars(run_folder(tmp_path)), read_scalars(whole.folder)
    assert one["losses/policy_loss"] != other["losses/policy_loss"]
    assert one["charts/episodic_return"] != other["charts/episodic_return"]


@once_per_script
def test_killed_and_resumed_equals_uninterrupted(script, resume, flags, whole, tmp_path):
    """The environment kills the process in step 230; the points up to there may have reached the disk."""
    environment = os.environ | {"PROBE_TROUBLE": f"230 signal {signal.SIGKILL:d}", "PYTHONPATH": str(TESTS)}
    run = [sys.executable, script.__file__, *flags, "--log-dir", "runs"]
    killed = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    folder = run_folder("runs")
    assert 230 - 3 * 32 < load(folder)["step"] < 230
    with_later_points = shutil.copytree(whole.folder, tmp_path / "later" / folder.name)
    shutil.copy(folder / "checkpoint.pt", with_later_points)

    for unfinished in (folder, with_later_points):
        resumed = resume(unfinished)
        assert resumed.code == 0
        assert resumed.out.splitlines()[-2] == whole.out.splitlines()[-2]
        assert_same_run(unfinished, whole.folder)


@pytest.mark.parametrize("signal_number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_a_checkpoint_and_goes_on(command, resume, flags, trouble, signal_number, code):
    trouble(f"170 signal {signal_number:d}")
    interrupted = command(*flags, "--log-dir", "runs")
    assert interrupted.code == code
    assert interrupted.err == ""
    folder = run_folder("runs")
    assert re.fullmatch(CHECKPOINT, interrupted.out.splitlines()[-1])[1] == f"runs/{folder.name}/checkpoint.pt"
    step = load(folder)["step"]
    assert 170 - 32 < step < 170  # the last whole iteration
    assert read_scalars(folder)["losses/entropy"][-1][0] == step

    trouble("0 none 0")
    assert resume(folder).code == 0
    steps = [step for step, _ in read_scalars(folder)["losses/entropy"]]
    assert steps == sorted(set(steps))
    assert len(steps) == load(folder)["iteration"]
    assert steps[-1] >= 320


def test_interrupted_in_an_update_saves_the_state_from_before_the_iteration(script, tiny, monkeypatch):
    ppo_update, states = script.ppo_update, []

    def interrupted(agent, optimizer, *args):
        metrics = ppo_update(agent, optimizer, *args)
        states.append(copy.deepcopy((agent.state_dict(), optimizer.state_dict()["state"])))
        if len(states) == 3:
            raise KeyboardInterrupt
        return metrics

    monkeypatch.setattr(script, "ppo_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.train(tiny(norm_obs=True, norm_value=True))
    saved = load(run_folder("runs"))
    assert saved["iteration"] == 2
    for before, kept in zip(states[1], (saved["agent"], saved["optimizer"]["state"]), strict=True):
        assert_same_weights(kept, before)


def test_interrupted_before_the_first_iteration_ends_without_a_checkpoint(command, flags, trouble):
    trouble(f"3 signal {signal.SIGINT:d}")
    interrupted = command(*flags, "--log-dir", "runs")
    assert (interrupted.code, interrupted.out, interrupted.err) == (130, "", "")
    assert not [*run_folder("runs").glob("checkpoint*")]


def test_resumed_for_longer(resume, whole, tmp_path):
    folder = shutil.copytree(whole.folder, tmp_path / whole.folder.name)
    assert resume(folder, "--total-timesteps", 400).code == 0
    points = read_scalars(folder)["losses/entropy"]
    assert points[: len(read_scalars(whole.folder)["losses/entropy"])] == read_scalars(whole.folder)["losses/entropy"]
    assert points[-1][0] >= 400
    assert load(folder)["args"]["total_timesteps"] == 400


def test_resumed_with_other_flags(resume, whole, tmp_path):
    folder = shutil.copytree(whole.folder, tmp_path / whole.folder.name)
    # 5 steps are enough for the 2 minibatches of the checkpoint, though not for those of the defaults.
    result = resume(folder, "--total-timesteps", 400, "--learning-rate", 0.02, "--no-anneal-lr", "--num-steps", 5)
    assert result.code == 0
    assert "nan" not in result.out  # the mean return is that of the episodes before, until others end
    rates = [rate for step, rate in read_scalars(folder)["charts/learning_rate"] if step > load(whole.folder)["step"]]
    assert rates == pytest.approx([0.02] * len(rates))
    assert rates


def test_nan_in_mid_run_keeps_the_last_checkpoint(command, flags, trouble):
    trouble("170 reward nan")
    failed = command(*flags, "--log-dir", "runs")
    assert failed.code == 1
    assert re.fullmatch(r"error: an observation or reward is NaN or Inf at step 1(70|71)\n", failed.err)
    assert load(run_folder("runs"))["iteration"] % 2 == 0
    assert re.fullmatch(CHECKPOINT, failed.out.splitlines()[-1])


def test_evaluate_repeats_the_evaluation_of_the_run(command, whole):
    before = {path: path.read_bytes() for path in whole.folder.iterdir()}
    result = command("--evaluate", whole.folder / "checkpoint.pt")
    assert result.code == 0
    assert result.out.splitlines() == [line for line in whole.out.splitlines() if line.startswith("evaluation:")]
    assert {path: path.read_bytes() for path in whole.folder.iterdir()} == before


def test_evaluate_takes_more_episodes(command, whole):
    result = command("--evaluate", whole.folder / "checkpoint.pt", "--eval-episodes", 7)
    assert re.fullmatch(EVALUATION.replace("3", "7") + "\n", result.out)


def test_evaluate_after_a_run_without_evaluation(command, flags):
    command(*flags, "--log-dir", "runs", "--eval-episodes", 0)
    result = command("--evaluate", run_folder("runs") / "checkpoint.pt")
    assert "nan" not in result.out + result.err


def test_prints_status_lines_and_the_closing_lines(whole):
    *status, evaluation, checkpoint = whole.out.splitlines()
    assert len(status) == load(whole.folder)["iteration"]
    for line in status:
        assert re.fullmatch(STATUS, line)
    assert re.fullmatch(EVALUATION, evaluation)
    assert Path(re.fullmatch(CHECKPOINT, checkpoint)[1]) == whole.folder / "checkpoint.pt"
    assert whole.err == ""


def test_solved_run_stops_early_and_says_when(command, flags):
    result = command(*flags, "--log-dir", "runs", "--target-return", -1000, "--total-timesteps", 100_000)
    *_, solved, evaluation, _ = result.out.splitlines()
    assert re.fullmatch(SOLVED, solved)
    assert re.fullmatch(EVALUATION, evaluation)
    state = load(run_folder("runs"))
    assert len(state["returns"]) == 20
    # The twentieth episode ends a few steps before the end of its iteration.
    assert state["step"] - 32 < int(solved.split()[-1]) <= state["step"] < 1000


def test_not_on_a_terminal_at_most_20_status_lines(command, flags):
    result = command(*flags, "--log-dir", "runs", "--total-timesteps", 32 * 47, "--update-epochs", 1)
    status = [line for line in result.out.splitlines() if re.fullmatch(STATUS, line)]
    assert 10 <= len(status) <= 20
    assert status[-1].startswith("100%")


def test_on_a_terminal_one_line_is_written_over_itself(script, tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    script.train(tiny(total_timesteps=16 * 30, update_epochs=1, eval_episodes=3))
    out = capsys.readouterr().out
    *status, end = out.split("\r")
    assert len(status) >= 29
    assert "\n" not in "".join(status)
    last, evaluation, checkpoint = end.splitlines()
    assert last.startswith("100%")
    assert re.fullmatch(EVALUATION, evaluation)
    assert re.fullmatch(CHECKPOINT, checkpoint)


@pytest.mark.parametrize("env_id, start", [("CartPole-v1", "CartPole-v1"), (None, "probe_envs_probe_Recorder")])
def test_run_folder_is_named_after_the_run(script, tiny, family, env_id, start):
    if env_id is None:
        env_id, start = f"probe_envs:probe/Recorder{family}-v0", f"{start}{family}-v0"
    elif family == "Box":
        env_id = start = "Pendulum-v1"
    script.train(tiny(env_id=env_id, exp_name="a/b:c", seed=12))
    assert re.fullmatch(rf"{start}__a_b_c__12__\d{{10}}", run_folder("runs").name)


def test_runs_of_one_name_that_begin_in_one_second_have_folders_of_their_own(script, tiny, tmp_path):
    args, now = tiny(), round(time.time())
    for second in range(now - 1, now + 3):
        (tmp_path / f"runs/{args.env_id}__{args.exp_name}__1__{second}".replace(":", "_")).mkdir(parents=True)
    script.train(args)
    (folder,) = [path for path in Path("runs").iterdir() if [*path.iterdir()]]
    assert int(folder.name[-10:]) >= now + 3
    assert load(folder)["step"] >= 64


def test_default_name_of_an_experiment_is_that_of_the_script(script):
    assert script.Args().exp_name == script.__name__


def test_curves_have_the_environment_steps_as_x_axis(script, tiny, record):
    envs = record("make_env")
    script.train(tiny(total_timesteps=100, eval_episodes=0, checkpoint_interval=2))
    scalars = read_scalars(run_folder("runs"))
    assert {*scalars, "charts/SPS", "eval/mean_return"} == TAGS
    steps = [step for step, _ in scalars["losses/entropy"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == sum(len(env.unwrapped.log) for env in envs)
    for tag in TAGS:
        if tag.startswith("losses/") or tag == "charts/learning_rate":
            assert [step for step, _ in scalars[tag]] == steps


def test_curves_show_the_episodes_and_the_learning_rate(script, tiny, record):
    rollouts, step, window = record("collect_rollout"), 0, []
    _, episode_returns = script.train(tiny(total_timesteps=160, learning_rate=0.01))
    expected = {"charts/episodic_return": [], "charts/episodic_length": [], "charts/episodic_return_20": []}
    rates = []
    for rollout, *_, episodes in rollouts:
        rates.append(pytest.approx(0.01 * (1 - step / 160)))
        step += len(all_rows(rollout, rollout["rewards"]))
        if episodes:
            _, returns, lengths = zip(*sorted(episodes), strict=True)
            window += returns
            for tag, numbers in zip(expected, (returns, lengths, window[-20:]), strict=True):
                expected[tag].append((step, pytest.approx(np.mean(numbers))))
    scalars = read_scalars(run_folder("runs"))
    assert len(window) > 20
    assert episode_returns == window
    assert {tag: scalars[tag] for tag in expected} == expected
    assert [rate for _, rate in scalars["charts/learning_rate"]] == rates


def test_iterations_without_an_end_have_no_point_of_episodes(script, probe, tiny):
    script.train(tiny(env_id=probe("Endless")))
    assert not [tag for tag in read_scalars(run_folder("runs")) if "episodic" in tag]


@pytest.mark.parametrize("env, warnings", [("Endless", 2), ("Recorder", 0)])
def test_checkpoints_that_let_no_episode_end_are_warned_of(script, probe, tiny, capsys, env, warnings):
    script.train(tiny(env_id=probe(env), checkpoint_interval=2))
    err = capsys.readouterr().err
    assert err.count("raise --checkpoint-interval") == len(err.splitlines()) == warnings
    assert warnings == 0 or "no episode has ended in 32 steps" in err


def test_an_edited_critic_is_trained_and_saved(script, tiny, monkeypatch):
    class Edited(script.ActorCritic):
        def __init__(self, *args):
            super().__init__(*args)
            self.critic = torch.nn.Sequential(self.critic, torch.nn.Tanh(), torch.nn.Linear(1, 1))

    monkeypatch.setattr(script, "ActorCritic", Edited)
    agent, _ = script.train(tiny(checkpoint_interval=1, hidden_size=8))
    assert_same_weights(load(run_folder("runs"))["agent"], agent.state_dict())
    assert "critic.2.weight" in agent.state_dict()


def test_learning_rate_stays_without_annealing(script, tiny):
    script.train(tiny(anneal_lr=False, learning_rate=0.01))
    rates = [rate for _, rate in read_scalars(run_folder("runs"))["charts/learning_rate"]]
    assert rates == pytest.approx([0.01] * len(rates))


def test_flags_are_logged_as_text_and_as_hyperparameters(script, whole):
    events = EventAccumulator(str(whole.folder)).Reload()
    text = events.Tensors("flags/text_summary")[0].tensor_proto.string_val[0].decode()
    metadata = {tag: events.SummaryMetadata(tag).plugin_data for tag in events.PluginTagToContent("hparams")}
    start = HParamsPluginData.FromString(metadata["_hparams_/session_start_info"].content).session_start_info.hparams
    experiment = HParamsPluginData.FromString(metadata["_hparams_/experiment"].content).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["eval/mean_return"]
    for name, value in load(whole.folder)["args"].items():
        assert f" {name} = {value}\n" in text + "\n"
        logged = getattr(start[name], start[name].WhichOneof("kind"))
        assert logged == (str(value) if value is None else value)
    assert {*start} == {field.name for field in dataclasses.fields(script.Args)}


def test_evaluation_is_the_last_point(whole):
    ((step, value),) = read_scalars(whole.folder)["eval/mean_return"]
    assert step == load(whole.folder)["step"]
    assert f"mean return {value:.1f} " in whole.out.splitlines()[-2]


def test_total_timesteps_are_rounded_up_to_whole_rollouts(script, tiny):
    script.train(tiny(total_timesteps=33))
    state = load(run_folder("runs"))
    if hasattr(script.Args, "num_envs"):  # resets, which are no steps, make its rollouts shorter than 2 x 8
        assert 33 <= state["step"] < 33 + 16
    else:
        assert (state["iteration"], state["step"]) == (3, 48)


def test_checkpoint_holds_what_a_run_needs(script, whole):
    state = load(whole.folder)
    agent = script.load_checkpoint(whole.folder / "checkpoint.pt")["agent"]
    assert_same_weights(agent, state["agent"])
    assert {"obs_stats.mean", "return_stats.var"} < {*agent}
    assert script.Args(**state["args"]).hidden_size == 8


def test_checkpoint_is_replaced_whole(script, tmp_path, monkeypatch):
    """A write that breaks off, as on a full disk, leaves the checkpoint from before."""
    path = tmp_path / "checkpoint.pt"
    script.save_checkpoint(path, {"step": 1})

    def half_written(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        script.save_checkpoint(path, {"step": 2})
    assert torch.load(path) == {"step": 1}


def test_greedy_episodes_without_an_end_are_cut(script, agent, probe, tmp_path, capsys):
    endless = script.make_env(probe("Endless"))
    agent = script.ActorCritic(1, endless.action_space, 8)
    args = script.Args(env_id=probe("Endless"), eval_episodes=1)
    assert script.evaluate(agent, args, tmp_path) == 10_000


@pytest.mark.filterwarnings("error:.*Overwriting existing videos")
@pytest.mark.parametrize("case", [case for case in CASES if "Discrete" in case], ids="-".join, indirect=True)
def test_video(script, tiny):
    script.train(tiny(env_id="CartPole-v1", capture_video=True, eval_episodes=1))
    videos = [*run_folder("runs").glob("videos/*.mp4")]
    assert videos
    for video in videos:
        assert b"ftyp" in video.read_bytes()[:16]  # the first box of an MP4 file


@once_per_script
def test_a_copy_of_the_script_runs_alone(script, tmp_path):
    alone = shutil.copy(script.__file__, tmp_path / "my_ppo.py")
    flags = "--total-timesteps=128 --num-steps=64 --num-minibatches=2 --eval-episodes=3 --hidden-size=8"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, alone, *flags.split()], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (0, "")
    evaluation, checkpoint = result.stdout.splitlines()[-2:]
    assert re.fullmatch(EVALUATION, evaluation)
    assert Path(re.fullmatch(CHECKPOINT, checkpoint)[1]).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"my_ppo.py", "runs"}
