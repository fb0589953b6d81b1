"""Errors, signals and a full disk: what a run that ends early leaves behind."""

import re
import signal
import threading
import time

import pytest
import torch
from conftest import CHECKPOINT, as_words, load, once_per_main, once_per_script, rollout_size, run_folder


@pytest.fixture
def with_lines(edited):
    """with_lines(lines) is the path of a copy of the script with lines above its main."""
    main = '\nif __name__ == "__main__":'
    return lambda lines: edited((main, lines + main))


@once_per_main
@pytest.mark.parametrize(
    "place, call", [("collect_rollout", 3), ("ppo_update", 2), ("close", 1), ("evaluate", 1), ("torch.save", 2)]
)
def test_a_signal_anywhere_leaves_a_checkpoint(script, with_lines, probe, launch, tmp_path, place, call):
    """SIGTERM as the given call of a function returns."""
    if place == "close":  # as where an environment hangs there
        place = "gym.vector.VectorEnv.close" if hasattr(script, "make_envs") else "gym.Wrapper.close"
    patch = f"""
def interrupted(*args, function={place}, calls=[]):
    result = function(*args)
    calls.append(args)
    if len(calls) == {call}:
        signal.raise_signal(signal.SIGTERM)
    return result

{place} = interrupted
"""
    run = {"num_minibatches": 1, "total_timesteps": 256, "eval_episodes": 2, "checkpoint_interval": 1}
    words = as_words({"env_id": probe("Recorder")} | run | rollout_size(script, 16, 2))
    result = launch(with_lines(patch), *words)
    assert result.returncode == 143, result.stderr
    folder = run_folder(tmp_path / "runs")
    assert result.stdout.splitlines()[-1] == f"checkpoint: {folder.relative_to(tmp_path) / 'checkpoint.pt'}"
    assert load(folder)["step"] > 0
    assert not (folder / "checkpoint.pt.tmp").exists()


@once_per_script
def test_a_lost_notice_does_not_delay_the_end(script, tiny, monkeypatch):
    """A signal within queue.put can leave a waiter that is gone: the thread of the writer sleeps to its next flush."""

    class Interrupted(script.SummaryWriter):
        def close(self):
            queue = self.file_writer.event_writer._async_writer._byte_queue
            gone = threading.Lock()
            gone.acquire()
            with queue.not_empty:
                queue.not_empty._waiters.appendleft(gone)
            super().close()

    monkeypatch.setattr(script, "SummaryWriter", Interrupted)
    start = time.monotonic()
    script.train(tiny())
    assert time.monotonic() < start + 60


@once_per_main
def test_a_full_disk_leaves_the_last_checkpoint(script, tiny, launch, tmp_path):
    """No file may grow beyond 1000 bytes."""
    script.train(tiny())
    path = tmp_path / run_folder() / "checkpoint.pt"
    before = path.read_bytes()
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); sys.argv.pop(0)"
    run = limited + "; runpy.run_path(sys.argv[0], run_name='__main__')"
    result = launch("-c", run, script.__file__, "--resume", path, "--total-timesteps", 1000)
    assert result.returncode == 1
    assert path.read_bytes() == before


@once_per_main
def test_an_interrupt_leaves_a_checkpoint(script, launch, flags, tmp_path):
    """Ctrl-C in a step of the environment."""
    result = launch(
        "-c",
        f"""
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = {[script.__file__, *flags]!r}
runpy.run_path({script.__file__!r}, run_name="__main__")
""",
        PROBE_TROUBLE=f"170 signal {signal.SIGINT:d}",
    )
    assert result.returncode == 130
    assert result.stderr == ""
    assert re.fullmatch(CHECKPOINT, result.stdout.splitlines()[-1])
    assert 96 < load(run_folder(tmp_path / "runs"))["step"] <= 224  # ppo_vector.py counts resets too


@once_per_main
def test_a_second_signal_does_not_interrupt_the_saving(with_lines, launch, flags, tmp_path):
    """As by `timeout`, which sends two, and torchrun, which sends SIGTERM after Ctrl-C."""
    patch = """
def interrupted(*args, function=torch.save):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    return function(*args)

torch.save = interrupted
"""
    result = launch(
        with_lines(patch), *flags, "--checkpoint-interval", 100, PROBE_TROUBLE=f"170 signal {signal.SIGTERM:d}"
    )
    assert result.returncode == 143, result.stderr
    assert load(run_folder(tmp_path / "runs"))["step"] > 96


@once_per_main
def test_an_error_in_the_environment_shows_its_traceback_and_leaves_a_checkpoint(script, launch, flags, tmp_path):
    result = launch(script.__file__, *flags, PROBE_TROUBLE="50 raise ImportError")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\nImportError: mine\n")
    assert load(run_folder(tmp_path / "runs"))["step"] > 0


@once_per_main
def test_nan_is_one_line_and_leaves_a_sound_checkpoint(script, launch, flags, tmp_path):
    result = launch(script.__file__, *flags, PROBE_TROUBLE="170 reward nan")
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*NaN.*\n", result.stderr)
    checkpoint = load(run_folder(tmp_path / "runs"))
    assert all(torch.isfinite(value).all() for value in checkpoint["agent"].values())
    assert checkpoint["step"] > 128  # the last regular one: the rollouts after it were sound
