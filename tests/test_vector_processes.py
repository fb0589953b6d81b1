"""ppo_vector.py in several processes: torchrun, asynchronous environments, signals. As a script: one of two."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import probe_envs
import pytest
import torch
from conftest import ROOT, assert_same_weights, read_scalars
from torch import distributed as dist

import ppo_vector

discrete = pytest.mark.parametrize("case", [("ppo_vector", "Discrete")], ids="-".join, indirect=True)
TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
ENV = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
# A checkpoint after every iteration, so that a run of half the steps can be resumed at its end.
RUN = {
    "env_id": "probe_envs:RecorderDiscrete-v0",
    "total_timesteps": 600,
    "num_steps": 32,
    "num_envs": 2,
    "hidden_size": 16,
}
RUN |= {"num_minibatches": 4, "norm_obs": True, "anneal_lr": False, "checkpoint_interval": 1, "eval_episodes": 3}
UPDATES = {
    "one minibatch": {"num_minibatches": 1, "update_epochs": 1, "max_grad_norm": 1e6},
    "four minibatches": {"num_minibatches": 4, "update_epochs": 3, "max_grad_norm": 0.1},
}


class FixedOrder:
    """In place of a random generator: the order of the rows in every epoch."""

    def __init__(self, order):
        self.order = order

    def permutation(self, num_rows):
        assert num_rows == len(self.order)
        return self.order


def update(name, rank=None):
    """Train an agent on the columns of a process, or, without rank, on those of both, in the same minibatches.

    Of the first process 42 rows are valid, of the second 32: four minibatches of both are as long as those of one.
    """
    rng, args = np.random.default_rng(0), ppo_vector.Args(**UPDATES[name])
    valid = np.zeros((20, 6), bool)
    for columns, num_valid in ((slice(3), 42), (slice(3, 6), 32)):
        valid[:, columns].flat[rng.choice(60, num_valid, replace=False)] = True
    torch.manual_seed(0)
    agent = ppo_vector.ActorCritic(3, probe_envs.ACTIONS["Discrete"], 16)
    agent.return_stats.mean.fill_(2.0)
    agent.return_stats.var.fill_(5.0)
    obs = torch.as_tensor(rng.normal(size=(20, 6, 3)), dtype=torch.float32)
    actions = torch.as_tensor(rng.integers([2, 5, 3], size=(20, 6, 3)))
    noise = torch.as_tensor(rng.normal(0, 0.3, (20, 6)), dtype=torch.float32)
    with torch.no_grad():
        logprobs = agent.evaluate_actions(obs, actions)[0] + noise
    values, advantages, returns = rng.normal([[[0]], [[1]], [[3]]], 2, (3, 20, 6))
    rollout = {"valid": valid, "obs": obs, "actions": actions, "logprobs": logprobs, "values": values}
    if rank is None:
        owners = np.nonzero(valid)[1] // 3
        parts = [np.array_split(np.flatnonzero(owners == rank), args.num_minibatches) for rank in (0, 1)]
        order = np.concatenate([rows for minibatch in zip(*parts, strict=True) for rows in minibatch])
    else:
        columns = slice(3 * rank, 3 * rank + 3)
        rollout = {name: array[:, columns] for name, array in rollout.items()}
        advantages, returns = advantages[:, columns], returns[:, columns]
        order = np.arange(rollout["valid"].sum())
    optimizer = ppo_vector.make_optimizer(agent, args.learning_rate)
    metrics = ppo_vector.ppo_update(agent, optimizer, rollout, advantages, returns, args, FixedOrder(order))
    return {"gradient": optimizer.param_groups[0]["params"][0].grad, "weights": agent.state_dict(), "metrics": metrics}


def work(folder):
    """What each of two processes does; it saves the results."""
    rank, obs, targets, ppo_update = int(os.environ["RANK"]), [], [], ppo_vector.ppo_update
    init = partial(dist.init_process_group, rank=rank, world_size=2)

    def recording(agent, optimizer, rollout, advantages, returns, *rest):
        obs.append(rollout["raw_obs"][rollout["valid"]])
        targets.append(returns[rollout["valid"]])
        return ppo_update(agent, optimizer, rollout, advantages, returns, *rest)

    ppo_vector.ppo_update = recording
    agent, returns = ppo_vector.train(ppo_vector.Args(**RUN, log_dir=f"{folder}/whole"))
    ppo_vector.ppo_update = ppo_update
    results = {"weights": agent.state_dict(), "returns": returns}
    results |= {"obs": np.concatenate(obs), "targets": np.concatenate(targets)}

    # torchrun's own store serves one group only.
    dist.init_process_group = partial(init, init_method=f"file://{folder}/store_of_half")
    ppo_vector.train(ppo_vector.Args(**RUN | {"total_timesteps": 300}, log_dir=f"{folder}/resumed"))
    init(init_method=f"file://{folder}/store_of_updates")
    results |= {"updates": {name: update(name, rank) for name in UPDATES}}
    dist.destroy_process_group()
    dist.init_process_group = partial(init, init_method=f"file://{folder}/store_of_resumed")
    (checkpoint,) = Path(folder, "resumed").glob("*/checkpoint.pt")
    agent, _ = ppo_vector.train(ppo_vector.Args(**RUN, resume=str(checkpoint)))
    torch.save(results | {"resumed_weights": agent.state_dict()}, Path(folder, f"{rank}.pt"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of work in two processes, the folder in which it was done, and its standard output."""
    folder = tmp_path_factory.mktemp("both")
    command = [sys.executable, *TORCHRUN, __file__, folder]
    done = subprocess.run(command, env=ENV, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return SimpleNamespace(results=results, folder=folder, out=done.stdout)


def test_statistics_cover_the_rows_of_both(both):
    for name, recorded in (("obs_stats", "obs"), ("return_stats", "targets")):
        rows = np.concatenate([result[recorded] for result in both.results])
        weights = both.results[0]["weights"]
        np.testing.assert_allclose(weights[f"{name}.mean"], rows.mean(0), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(weights[f"{name}.var"], rows.var(0), rtol=1e-6)
        assert weights[f"{name}.count"] == len(rows)


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_equals_that_of_one_process_on_all_rows(both, name):
    one, other = (result["updates"][name] for result in both.results)
    assert_same_weights(one, other)
    expected = update(name)
    assert one["metrics"] == pytest.approx(expected["metrics"], rel=1e-5, abs=1e-6)
    for key in ("gradient", "weights"):
        torch.testing.assert_close(one[key], expected[key], rtol=1e-5, atol=1e-6)
    assert expected["gradient"].abs().max() > 0.01


def test_both_end_with_the_same_weights_and_returns(both):
    result, other = both.results
    assert_same_weights(result["weights"], other["weights"])
    assert result["returns"] == other["returns"]
    torch.manual_seed(1)  # the seed of the run
    fresh = ppo_vector.ActorCritic(3, probe_envs.ACTIONS["Discrete"], 16)
    assert (result["weights"]["critic.weight"] - fresh.critic.weight).abs().max() > 0.01


def test_the_first_alone_writes_and_counts_the_steps_of_both(both):
    (folder,) = (both.folder / "whole").iterdir()
    assert len(list(folder.glob("events*"))) == 1
    assert len(list((both.folder / "resumed").iterdir())) == 1
    assert both.out.count("checkpoint: ") == both.out.count("evaluation: ") == 3
    saved = ppo_vector.load_checkpoint(folder / "checkpoint.pt")
    assert saved["step"] == sum(len(result["obs"]) for result in both.results)
    steps = [step for step, _ in read_scalars(folder)["losses/entropy"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == saved["step"]


def test_a_resumed_run_of_both_equals_the_uninterrupted_one(both):
    for result in both.results:
        assert_same_weights(result["resumed_weights"], both.results[0]["weights"])
    whole, resumed = (next((both.folder / name).iterdir()) for name in ("whole", "resumed"))
    scalars, resumed_scalars = read_scalars(whole), read_scalars(resumed)
    half_evaluation, _ = resumed_scalars["eval/mean_return"]
    assert half_evaluation[0] < 400
    assert resumed_scalars == scalars | {"eval/mean_return": [half_evaluation, *scalars["eval/mean_return"]]}


@discrete
def test_weights_that_have_parted_end_the_run(tiny, monkeypatch):
    """The sums of the weights, the only numbers gathered alone, seem to differ from those of another process."""
    monkeypatch.setattr(ppo_vector, "gather", lambda x: [x, x + 1e-6] if isinstance(x, float) else [x])
    with pytest.raises(RuntimeError, match="weights differ at step"):
        ppo_vector.train(tiny(checkpoint_interval=1))


@discrete
@pytest.mark.parametrize("saved, now", [(2, 1), (1, 2)])
def test_a_run_is_not_resumed_by_another_number_of_processes(command, both, tiny, monkeypatch, saved, now):
    checkpoint = next((both.folder / "whole").iterdir()) / "checkpoint.pt"
    if saved == 1:
        ppo_vector.train(tiny(log_dir="single"))
        (checkpoint,) = Path("single").glob("*/checkpoint.pt")
    monkeypatch.setenv("WORLD_SIZE", str(now))
    files = set(checkpoint.parent.iterdir())
    result = command("--resume", checkpoint, "--total-timesteps", 10_000)
    assert result.code == 2
    assert result.err == f"error: {checkpoint} was trained by {saved} processes: resume it with as many\n"
    assert set(checkpoint.parent.iterdir()) == files


def heed_ctrl_c():
    """Python ignores it where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path):
    """Start the script on the Accident, after the launcher's words; its output goes to the files out and err."""
    processes = []

    def start(accident, mode, launcher=(), flags=""):
        flags += f" --env-id probe_envs:Accident-v0 --vectorization-mode {mode} --num-envs 3 --num-steps 32"
        words = [*launcher, ROOT / "ppo_vector.py", *flags.split(), "--num-minibatches", "2", "--eval-episodes", "0"]
        env = ENV | {"PROBE_ACCIDENT": accident, "PROBE_FOLDER": str(tmp_path)}
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            options = {"stdout": out, "stderr": err, "start_new_session": True, "preexec_fn": heed_ctrl_c}
            process = subprocess.Popen([sys.executable, *words], env=env, cwd=tmp_path, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on to its processes, which have sessions of their own
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def anyone_alive(tmp_path):
    """Does any process, child or grandchild, in which there is an Accident still run?"""

    def anyone_alive():
        with (tmp_path / "alive").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    return anyone_alive


def wait_until(condition, seconds):
    """Whether the condition becomes true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_error_in_an_environment_ends_the_run_and_is_named(start, anyone_alive, tmp_path, mode):
    assert start("raise", mode).wait(60) == 1
    assert (tmp_path / "err").read_text().strip().endswith("\nRuntimeError: an accident in step 40")
    assert wait_until(lambda: not anyone_alive(), 5)


@pytest.mark.parametrize("mode, launcher", [("async", ()), ("sync", TORCHRUN)], ids=["async", "torchrun"])
def test_a_killed_process_takes_the_others_down(start, anyone_alive, tmp_path, mode, launcher):
    """Of asynchronous environments one, or one of torchrun's processes."""
    assert start("kill", mode, launcher).wait(60) > 0
    assert (tmp_path / "accident").exists()
    assert wait_until(lambda: not anyone_alive(), 5)


@pytest.mark.parametrize(
    "number, to_all",
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["SIGINT to all", "SIGTERM", "SIGTERM to all"],
)
def test_a_signal_ends_the_run_with_a_checkpoint_of_the_last_whole_iteration(
    start, anyone_alive, tmp_path, number, to_all
):
    """It comes in the middle of a long step. Saving a large network, the run is slower to end than the environments."""
    process = start("hang", "async", flags="--hidden-size 1024 --update-epochs 1")
    assert wait_until((tmp_path / "accident").exists, 60)
    assert anyone_alive()
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert process.wait(30) == 128 + number
    assert wait_until(lambda: not anyone_alive(), 5)
    last_line = (tmp_path / "out").read_text().splitlines()[-1]
    checkpoint = tmp_path / last_line.removeprefix("checkpoint: ")
    assert ppo_vector.load_checkpoint(checkpoint)["iteration"] == 1
    assert len(read_scalars(checkpoint.parent)["losses/entropy"]) == 1


def test_a_signal_during_a_fork_is_not_lost(start, anyone_alive):
    assert start("fork", "async").wait(30) == 128 + signal.SIGTERM
    assert wait_until(lambda: not anyone_alive(), 5)


if __name__ == "__main__":
    work(sys.argv[1])
