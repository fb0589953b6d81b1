"""Checkpoints: what they hold, what is refused, and how a run goes on."""

import functools
import pickle
import runpy
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, load, once_per_main, once_per_script, read_scalars, run_folder, statistics


@pytest.fixture
def checkpoint(script, tiny):
    """The checkpoint of a finished run."""
    script.train(tiny(norm_obs=True))
    return run_folder() / "checkpoint.pt"


@once_per_script
def test_what_does_not_fit_to_a_checkpoint_is_one_line(checkpoint, main, probe):
    """Another network, another environment of other shapes, another script: nothing is written."""
    before = checkpoint.read_bytes(), sorted(Path("runs").rglob("*"))
    for flags, words in {
        ("--evaluate", checkpoint, "--eval-episodes", 1, "--hidden-size", 8): "size mismatch",
        ("--evaluate", checkpoint, "--eval-episodes", 1, "--env-id", probe("ObsFloat64")): "size mismatch",
        ("--resume", checkpoint, "--total-timesteps", 128, "--hidden-size", 8): "size mismatch",
        ("--resume", checkpoint, "--total-timesteps", 128, "--env-id", probe("Same")): "is not for",
    }.items():
        code, message = main(*flags)
        assert code == 1
        assert message.startswith("error: ") and words in message, message
        assert "Traceback" not in message
    assert (checkpoint.read_bytes(), sorted(Path("runs").rglob("*"))) == before


@once_per_script
@pytest.mark.parametrize("flag", ["--evaluate", "--resume"])
def test_an_empty_path_is_no_new_run(main, flag, tmp_path):
    """As of a variable of the shell that is not set."""
    assert main(flag, "") == (1, "error: checkpoint  is missing or broken")
    assert not [*tmp_path.iterdir()]


@once_per_script
@pytest.mark.parametrize("flag", ["--evaluate", "--resume"])
def test_what_is_no_checkpoint_is_refused_in_one_line(checkpoint, main, flag, tmp_path):
    """A folder, a text, and a checkpoint that was copied in part."""
    part = tmp_path / "part.pt"
    part.write_bytes(checkpoint.read_bytes()[:-100])
    for path in (tmp_path, __file__, part):
        assert main(flag, path) == (1, f"error: checkpoint {path} is missing or broken")


@once_per_script
def test_a_finished_run_is_refused_before_an_environment_is_made(checkpoint, main, monkeypatch):
    """Its curves and its checkpoint stay as they are."""
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    for name in ("gymnasium.make", "gymnasium.make_vec"):
        monkeypatch.setattr(name, None)
    assert main("--resume", checkpoint) == (1, "error: raise --total-timesteps above 64")
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


@once_per_script
def test_a_schedule_by_numpy_makes_a_checkpoint_that_loads(script, tiny, edited):
    """torch refuses to load NumPy's numbers."""
    share = "global_step / args.total_timesteps"
    copy = runpy.run_path(edited((f"fraction = 1 - {share}", f"fraction = np.cos({share})")))
    copy["train"](tiny())
    (group,) = load(run_folder())["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(script.Args.learning_rate * np.cos(0.75))


def test_a_checkpoint_of_another_script_is_one_line(main, checkpoint, script):
    """Other flags, or a file of weights alone."""
    saved = torch.load(checkpoint)
    others = [saved["args"] | {"other": 1}]
    if script.__name__ == "ppo_vector":  # ppo_discrete.py has the rest of its flags
        others.append({name: value for name, value in saved["args"].items() if name != "num_envs"})
    for content in (saved["agent"], *(saved | {"args": args} for args in others)):
        torch.save(content, checkpoint)
        for flag in ("--resume", "--evaluate"):
            assert main(flag, checkpoint) == (1, "error: checkpoint of another script")


@once_per_script
def test_an_evaluation_needs_episodes_and_prefers_its_own_checkpoint(script, tiny, main):
    for name in ("one", "other"):
        script.train(tiny(log_dir=name, seed=len(name)))
    one, other = (run_folder(name) / "checkpoint.pt" for name in ("one", "other"))
    assert main("--evaluate", one)[1].endswith("ended: set max_episode_steps or raise --eval-episodes")
    one.write_text("no checkpoint")
    assert main("--evaluate", other, "--resume", one, "--eval-episodes", 1) == (0, "")


@once_per_script
def test_groups_of_parameters_keep_their_learning_rates_after_a_resume(script, tiny, monkeypatch, record):
    adam = torch.optim.Adam

    def two_groups(parameters, lr, **kwargs):
        first, *rest = parameters
        return adam([{"params": [first], "lr": 10 * lr}, {"params": rest}], lr=lr, **kwargs)

    monkeypatch.setattr(torch.optim, "Adam", two_groups)
    rates = record("ppo_update", lambda agent, optimizer, *_: [group["lr"] for group in optimizer.param_groups])
    fractions = record("ppo_update", lambda *args: args[-1])  # of the entropy bonus
    script.train(tiny(learning_rate=0.01))
    script.train(tiny(learning_rate=0.01, total_timesteps=128, resume=str(run_folder() / "checkpoint.pt")))
    left = [1, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125]
    np.testing.assert_allclose(rates, [[0.1 * part, 0.01 * part] for part in left])
    np.testing.assert_allclose(fractions, left)


@once_per_script
def test_a_checkpoint_of_a_resumed_run_loads_and_does_not_resume_itself(script, tiny):
    script.train(tiny())
    script.train(tiny(total_timesteps=128, resume=run_folder() / "checkpoint.pt"))  # a Path, as of a glob
    assert load(run_folder())["args"]["resume"] is None


@once_per_script
def test_a_run_that_is_resumed_from_a_copy_leaves_the_copy_alone(script, tiny):
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    best = Path(shutil.copy(path, run_folder() / "best.pt"))
    script.train(tiny(total_timesteps=128, resume=str(best)))
    assert [torch.load(each)["step"] for each in (best, path)] == [64, 128]


@once_per_script
def test_a_changed_optimizer_is_not_changed_back_by_a_checkpoint(script, tiny, monkeypatch):
    """Its moments are the saved ones, its settings those of the script."""
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    before = torch.load(path)["optimizer"]
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(torch.optim.AdamW, weight_decay=0.5))
    script.train(tiny(total_timesteps=128, resume=str(path)))
    after = torch.load(path)["optimizer"]
    assert [group["weight_decay"] for group in after["param_groups"]] == [0.5]
    assert before["param_groups"][0]["weight_decay"] == 0
    assert after["state"][0]["step"] == 2 * before["state"][0]["step"] > 0


@once_per_script
def test_a_checkpoint_does_not_fit_an_optimizer_with_other_groups(script, tiny, monkeypatch):
    """Its moments are saved in the order of the parameters, so they would belong to others."""
    script.train(tiny())
    adam = torch.optim.Adam

    def two_groups(parameters, **settings):
        first, *others = parameters
        return adam([{"params": others}, {"params": [first]}], **settings | {"fused": False})  # fused may crash

    monkeypatch.setattr(torch.optim, "Adam", two_groups)
    with pytest.raises(ValueError, match="number of parameter groups"):
        script.train(tiny(total_timesteps=128, resume=str(run_folder() / "checkpoint.pt")))


@once_per_script
def test_a_checkpoint_does_not_fit_layers_in_another_order(script, tiny):
    """Weights are loaded by name but moments by order; those of another size crash a fused optimizer."""
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    saved = torch.load(path)
    saved["agent"] = dict(reversed(saved["agent"].items()))
    torch.save(saved, path)
    with pytest.raises(ValueError, match="order"):
        script.train(tiny(total_timesteps=128, resume=str(path)))


@once_per_script
def test_a_resumed_run_goes_on_with_the_saved_statistics(script, tiny, record):
    rollouts = record("collect_rollout")
    targets = record("compute_gae")
    script.train(tiny(norm_obs=True))
    agent = script.train(tiny(norm_obs=True, total_timesteps=128, resume=str(run_folder() / "checkpoint.pt")))
    assert [step for step, _ in read_scalars(run_folder())["losses/entropy"]] == [*range(16, 129, 16)]
    for ours, expected in zip(
        (agent.obs_rms, agent.return_mean, agent.return_std), statistics(rollouts, targets), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@once_per_script
def test_a_broken_checkpoint_is_not_resumed_and_no_code_in_it_runs(script, tiny):
    """Cut at every 4 KiB, or with code in the pickle."""
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    sound = path.read_bytes()
    broken = []
    for i in range(0, len(sound), 4096):
        broken.append(sound[:i])
    torch.save({"args": Malicious(), "step": 0}, path)
    broken.append(path.read_bytes())
    for content in broken:
        path.write_bytes(content)
        with pytest.raises((RuntimeError, OSError, EOFError, pickle.UnpicklingError)):
            script.train(tiny(resume=str(path)))
        assert path.read_bytes() == content
    assert not Path("executed").exists()
    assert len(broken) > 4


@once_per_script
def test_a_resumed_run_begins_another_episode(script, tiny, record):
    rollouts = record("collect_rollout")
    script.train(tiny())
    script.train(tiny(total_timesteps=128, resume=str(run_folder() / "checkpoint.pt")))
    assert (rollouts[0][0]["obs"][0] != rollouts[4][0]["obs"][0]).all()


@once_per_main
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
    assert steps == [*range(32, load(folder)["step"] + 1, 32)]
    rates = dict(read_scalars(folder)["charts/learning_rate"])
    assert rates[saved + 32] == pytest.approx(script.Args().learning_rate * (1 - saved / 400))
    evaluated = launch(script.__file__, "--evaluate", folder / "checkpoint.pt")
    assert evaluated.stdout.splitlines()[-1] == resumed.stdout.splitlines()[-2]


def test_checkpoint_is_replaced_whole(script, agent, tiny, tmp_path, monkeypatch):
    """A write that breaks off, as on a full disk, leaves the checkpoint from before."""
    path = tmp_path / "checkpoint.pt"
    optimizer = torch.optim.Adam(agent.parameters())
    script.save_checkpoint(path, tiny(), 1, agent, optimizer)

    def half_written(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        script.save_checkpoint(path, tiny(), 2, agent, optimizer)
    assert load(tmp_path)["step"] == 1


@once_per_script
def test_checkpoints_are_written_every_so_many_iterations_and_at_the_end(script, tiny, record):
    steps = record("save_checkpoint", lambda path, args, global_step, *_: global_step)
    script.train(tiny(checkpoint_interval=2, total_timesteps=112))
    assert steps == [32, 64, 96, 112, 112]  # at the end, and in finally


@once_per_script
def test_a_checkpoint_has_no_point_that_is_not_yet_in_its_file(script, tiny, monkeypatch):
    """So that a kill leaves no gap in the curves before the checkpoint."""
    pending = []
    pending_at_save = []

    class Writer(script.SummaryWriter):
        def add_scalar(self, tag, *rest):
            super().add_scalar(tag, *rest)
            pending.append(tag)

        def flush(self):
            super().flush()
            pending.clear()

    monkeypatch.setattr(script, "SummaryWriter", Writer)
    monkeypatch.setattr(script, "save_checkpoint", lambda *_: pending_at_save.append([*pending]))
    script.train(tiny(checkpoint_interval=1))
    assert pending_at_save == [[]] * 5


def test_a_run_is_saved_before_its_evaluation_which_may_crash(script, tiny, monkeypatch):
    steps = []
    monkeypatch.setattr(script, "evaluate", lambda *_: steps.append(load(run_folder())["step"]) or 0.0)
    script.train(tiny(eval_episodes=1))
    assert steps == [64]
