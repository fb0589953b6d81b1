"""What the other files leave out: numbers far from 0, signals in the middle of a step, filming, what a resume keeps."""

import copy
import fcntl
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from conftest import ROOT, TESTS, assert_same, once_per_script, read_scalars, run_folder

both_families = pytest.mark.parametrize(
    "case", [("ppo_vector", "Discrete"), ("ppo_vector", "Box")], ids="-".join, indirect=True
)
vector_alone = pytest.mark.parametrize("case", [("ppo_vector", "Discrete")], ids="-".join, indirect=True)


@once_per_script
def test_statistics_of_float32_rows_far_from_0(script):
    """As in a first rollout of observations that differ little, compared with their size."""
    rng, stats = np.random.default_rng(0), script.RunningMeanStd((3,))
    batches = [rng.normal(10_000, 1, (1024, 3)).astype(np.float32) for _ in range(2)]
    for i, batch in enumerate(batches):
        stats.update(batch)
        rows = np.concatenate(batches[: i + 1]).astype(np.float64)
        np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(stats.std, rows.std(0), rtol=1e-2)


@vector_alone
def test_rollouts_too_small_for_their_minibatches_are_refused(script, probe, tiny, tmp_path):
    """Of episodes of one step every second step is a reset."""
    for flags in ({"num_steps": 1}, {"num_steps": 3, "num_envs": 1, "num_minibatches": 2}):
        with pytest.raises(SystemExit, match="half of --num-steps"):
            script.train(tiny(env_id=probe("OneStep"), **flags))
    assert not [*tmp_path.iterdir()]
    script.train(tiny(env_id=probe("OneStep"), num_steps=3, num_envs=2, num_minibatches=2))


@once_per_script
def test_environment_and_actions_draw_different_numbers(script, tiny, monkeypatch):
    """default_rng(seed) and env.reset(seed=seed) are one generator."""
    collect_rollout, draws = script.collect_rollout, []

    def collect(env, *args):
        if not draws:
            single = getattr(env.unwrapped, "envs", [env])
            generators = [args[-1], *(each.unwrapped.np_random for each in single)]
            draws.extend(copy.deepcopy(generator).random(1000) for generator in generators)
        return collect_rollout(env, *args)

    monkeypatch.setattr(script, "collect_rollout", collect)
    script.train(tiny(vectorization_mode="sync") if hasattr(script, "make_envs") else tiny())
    assert len(np.unique(draws)) == np.size(draws) >= 2000


@pytest.mark.parametrize("case", [("ppo_discrete", "Discrete")], ids="-".join, indirect=True)
def test_an_environment_may_change_its_action_in_place(script, tiny):
    """It refuses actions outside its space, which a changed table of actions would give."""
    script.train(tiny(env_id="probe_envs:Changing-v0"))


@once_per_script
@pytest.mark.parametrize("change", [{"norm_obs": False}, {"hidden_size": 8}], ids=str)
def test_a_checkpoint_of_another_network_is_refused(script, tiny, change):
    script.train(tiny(norm_obs=True))
    with pytest.raises(RuntimeError, match="state_dict"):
        script.train(tiny(**{"norm_obs": True, "evaluate": str(run_folder() / "checkpoint.pt")} | change))


@once_per_script
def test_a_run_by_numbers_of_numpy_is_resumed(script, tiny):
    flags = {"learning_rate": np.logspace(-4, -3, 2)[0], "gamma": np.float32(0.9), "seed": np.arange(3)[1]}
    script.train(tiny(**flags, anneal_lr=np.bool_(True)))
    script.train(tiny(resume=str(run_folder() / "checkpoint.pt"), total_timesteps=np.int64(128)))


@once_per_script
def test_an_evaluation_plays_at_least_one_episode_and_prefers_its_own_checkpoint(script, tiny, capsys):
    for name in ("one", "other"):
        script.train(tiny(log_dir=name, seed=len(name)))
    one, other = (str(run_folder(name) / "checkpoint.pt") for name in ("one", "other"))
    agent = script.train(tiny(resume=one, evaluate=other))
    assert_same(agent.state_dict(), torch.load(other)["agent"])
    assert "over 1 episodes" in capsys.readouterr().out


@both_families
def test_advantages_are_those_of_each_environment_alone(script, player):
    """Nothing of a step that is a reset reaches them."""
    played = player()
    rollout, transitions, _ = played.play(100, np.random.default_rng(5))
    advantages, _ = script.compute_gae(*transitions, 0.9, 0.8)
    for i in range(3):
        rows = rollout["valid"][:, i]
        assert 10 < sum(~rows) < 50
        alone = [array[rows, i] for array in transitions]
        np.testing.assert_allclose(advantages[rows, i], reference.gae(*alone, 0.9, 0.8), rtol=1e-5, atol=1e-5)


# Values by the Bellman equation V = r + gamma P V, with gamma 0.9.
STAGGERED = {
    "StaggeredEnd": np.linalg.solve(np.eye(4) - 0.9 * np.eye(4, k=1), [1, 0, -2, 3]),
    "StaggeredEndless": np.linalg.solve(np.eye(3) - 0.9 * np.roll(np.eye(3), 1, axis=1), [1, 0, 2]),
}


@vector_alone
@pytest.mark.parametrize("name", STAGGERED)
def test_values_become_the_known_ones_where_environments_end_at_different_times(script, tiny, name):
    flags = {"total_timesteps": 8000, "num_envs": 8, "num_steps": 32, "num_minibatches": 4, "learning_rate": 5e-3}
    agent = script.train(tiny(env_id=f"probe_envs:{name}-v0", gamma=0.9, gae_lambda=0.9, **flags))
    with torch.no_grad():
        _, values = agent(torch.eye(len(STAGGERED[name])))
    np.testing.assert_allclose(values, STAGGERED[name], rtol=0.05, atol=0.05)


@once_per_script
def test_groups_of_parameters_keep_their_learning_rates_after_a_resume(script, tiny, monkeypatch):
    rates, ppo_update, adam = [], script.ppo_update, torch.optim.Adam

    def two_groups(parameters, lr, **kwargs):
        first, *rest = parameters
        return adam([{"params": [first], "lr": 10 * lr}, {"params": rest}], lr=lr, **kwargs)

    def recording(agent, optimizer, *rest):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return ppo_update(agent, optimizer, *rest)

    monkeypatch.setattr(torch.optim, "Adam", two_groups)
    monkeypatch.setattr(script, "ppo_update", recording)
    script.train(tiny(learning_rate=0.01))
    script.train(tiny(learning_rate=0.01, total_timesteps=128, resume=str(run_folder() / "checkpoint.pt")))
    left = [1, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125]
    np.testing.assert_allclose(rates, [[0.1 * part, 0.01 * part] for part in left])


@once_per_script
def test_a_resumed_run_goes_on_with_the_saved_statistics(script, tiny, record):
    agents = record("train")
    script.train(tiny(norm_obs=True))
    rollouts = record("collect_rollout")
    script.train(tiny(norm_obs=True, total_timesteps=128, resume=str(run_folder() / "checkpoint.pt")))
    assert [step for step, _ in read_scalars(run_folder())["losses/entropy"]] == [*range(16, 129, 16)]
    assert agents[1].obs_stats.count == agents[0].obs_stats.count + sum(len(r["obs"]) for r, *_ in rollouts)


@once_per_script
def test_a_finished_run_that_is_resumed_says_so_and_adds_no_point(script, tiny):
    script.train(tiny(eval_episodes=3))
    scalars = read_scalars(run_folder())
    assert len(scalars["eval/mean_return"]) == 1
    with pytest.raises(SystemExit, match="raise --total-timesteps above 64"):
        script.train(tiny(eval_episodes=3, resume=str(run_folder() / "checkpoint.pt")))
    assert read_scalars(run_folder()) == scalars


@once_per_script
@pytest.mark.filterwarnings("ignore")
def test_only_one_environment_is_open_at_a_time_when_filming(script, probe, tiny):
    size = {"num_envs": 1, "num_steps": 16} if hasattr(script.Args, "num_envs") else {}
    script.train(tiny(env_id=probe("Filmed"), eval_episodes=1, capture_video=True, **size))


def test_the_readme_example_in_python_runs(tmp_path, monkeypatch):
    import ppo_discrete

    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    ppo_discrete.train(ppo_discrete.Args(total_timesteps=1024, eval_episodes=0))
    (run_folder() / "checkpoint.pt").rename("checkpoint.pt")
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize("case", [("ppo_continuous", "Box"), ("ppo_vector", "Box")], ids="-".join, indirect=True)
def test_actions_are_scaled_to_finite_bounds(script):
    """-1, 0 and 0.5 are the lower bound, the middle and three quarters of the way up; 9 is the upper bound."""
    for name, expected in {
        "ActAsymmetric": [[-0.1, 2], [0.3, 3.5], [0.5, 4.25], [0.7, 5]],
        "ActUnbounded": [[-1, -1], [0, 0], [0.5, 0.5], [9, 9]],
        "ActLowerBound": [[0, 0], [0, 0], [0.5, 0.5], [9, 9]],
    }.items():
        env_id = f"probe_envs:{name}-v0"
        env = script.make_envs(env_id, 1) if hasattr(script, "make_envs") else script.make_env(env_id)
        actions = [np.ravel(env.func(np.full(2, action, np.float32))) for action in (-1, 0, 0.5, 9)]
        np.testing.assert_allclose(actions, expected, rtol=1e-6)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@once_per_script
def test_a_broken_checkpoint_is_not_resumed_and_no_code_in_it_runs(script, tiny):
    """Cut at every 4 KiB, or with code in the pickle."""
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    sound, broken = path.read_bytes(), []
    for i in range(0, len(sound), 4096):
        broken.append(sound[:i])
    torch.save({"args": Malicious(), "step": 0}, path)
    broken.append(path.read_bytes())
    for content in broken:
        path.write_bytes(content)
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            script.train(tiny(resume=str(path)))
        assert path.read_bytes() == content
    assert not Path("executed").exists()
    assert len(broken) > 4


@once_per_script
def test_the_policy_that_acted_is_the_one_that_the_update_starts_from(script, tiny, monkeypatch):
    """Statistics of observations move after the update: at its start all ratios are 1."""
    ratios, ppo_update = [], script.ppo_update

    def recording(agent, optimizer, rollout, *rest):
        logprobs, _, _ = agent.evaluate_actions(rollout["obs"], rollout["actions"])
        ratios.append((logprobs - rollout["logprobs"]).exp().detach().numpy())
        return ppo_update(agent, optimizer, rollout, *rest)

    monkeypatch.setattr(script, "ppo_update", recording)
    script.train(tiny(norm_obs=True, learning_rate=0.01))
    assert len(ratios) == 4
    np.testing.assert_allclose(np.concatenate(ratios), 1, rtol=1e-5)


@once_per_script
def test_a_resumed_run_keeps_its_optimizer_and_begins_another_episode(script, tiny, record):
    rollouts = record("collect_rollout")
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    before = torch.load(path, weights_only=True)["optimizer"]["state"][0]["step"]
    script.train(tiny(total_timesteps=128, resume=str(path)))
    assert before > 0
    assert torch.load(path, weights_only=True)["optimizer"]["state"][0]["step"] == 2 * before
    assert (rollouts[0][0]["obs"][0] != rollouts[4][0]["obs"][0]).all()


@once_per_script
def test_the_learning_rate_stays_without_annealing(script, tiny):
    script.train(tiny(anneal_lr=False, learning_rate=0.01))
    assert [rate for _, rate in read_scalars(run_folder())["charts/learning_rate"]] == pytest.approx([0.01] * 4)


@once_per_script
def test_solved_takes_20_episodes(script, tiny, record):
    rollouts = record("collect_rollout")
    script.train(tiny(target_return=-1000.0, total_timesteps=100_000))
    counts = [len(episodes) for *_, episodes in rollouts]
    assert sum(counts[:-1]) < 20 <= sum(counts)


@once_per_script
def test_checkpoints_are_written_every_so_many_iterations_and_at_the_end(script, tiny, monkeypatch):
    steps, save_checkpoint = [], script.save_checkpoint

    def recording(path, args, global_step, *rest):
        steps.append(global_step)
        save_checkpoint(path, args, global_step, *rest)

    monkeypatch.setattr(script, "save_checkpoint", recording)
    script.train(tiny(checkpoint_interval=3, total_timesteps=112))
    assert steps == [48, 96, 112]


@pytest.mark.parametrize("case", [("ppo_discrete", "Discrete")], ids="-".join, indirect=True)
def test_more_than_10000_combinations_are_refused(tiny, script):
    script.train(tiny(env_id="probe_envs:AlmostTooManyChoices-v0", total_timesteps=16))
    with pytest.raises(SystemExit, match=r"error: .*more than 10,000 combinations of actions"):
        script.train(tiny(env_id="probe_envs:ManyChoices-v0"))


@pytest.fixture
def start(tmp_path):
    """Start the script with asynchronous Accidents; its output goes to the files out and err."""
    processes = []

    def start(accident):
        flags = "--env-id probe_envs:Accident-v0 --vectorization-mode async --num-envs 3 --num-steps 32"
        words = [ROOT / "ppo_vector.py", *flags.split(), "--num-minibatches", "2", "--eval-episodes", "0"]
        env = os.environ | {"PROBE_ACCIDENT": accident, "PROBE_FOLDER": str(tmp_path), "PYTHONPATH": str(TESTS)}
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            options = {"stdout": out, "stderr": err, "start_new_session": True}
            restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
            processes.append(subprocess.Popen([sys.executable, *words], env=env, cwd=tmp_path, **options, **restore))
        return processes[-1]

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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
    saved = torch.load(run_folder() / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 96
    assert Path("out").read_text().splitlines()[-1] == f"checkpoint: {run_folder() / 'checkpoint.pt'}"


def test_an_error_in_an_asynchronous_environment_is_named(start):
    assert start("raise").wait(60) == 1
    assert "RuntimeError: an accident in step 40" in Path("err").read_text()
    assert Path("err").read_text().count("Traceback") >= 1
    assert_checkpoint_after_one_iteration()
    assert wait_until(nobody_alive, 5)


@pytest.mark.parametrize("number, to_all", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_in_a_long_step_of_an_asynchronous_environment(start, number, to_all):
    process = start("hang")
    assert wait_until(Path("accident").exists, 60)
    assert not nobody_alive()
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert process.wait(30) == 128 + number
    assert wait_until(nobody_alive, 5)
    assert_checkpoint_after_one_iteration()


@once_per_script
@pytest.mark.parametrize(
    "place, call", [("collect_rollout", 3), ("ppo_update", 2), ("close", 1), ("evaluate", 1), ("torch.save", 2)]
)
def test_a_signal_anywhere_leaves_a_checkpoint(script, probe, launch, tmp_path, place, call):
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
    source = Path(script.__file__).read_text()
    edited = tmp_path / "edited.py"
    edited.write_text(source.replace('\nif __name__ == "__main__":', patch + '\nif __name__ == "__main__":'))
    size = ["--num-steps", 32, "--num-minibatches", 1, "--total-timesteps", 256, "--eval-episodes", 2]
    size += ["--num-envs", 2] if hasattr(script, "make_envs") else []
    result = launch(edited, "--env-id", probe("Recorder"), *size, "--checkpoint-interval", 1)
    assert result.returncode == 143, result.stderr
    folder = run_folder(tmp_path / "runs")
    assert result.stdout.splitlines()[-1] == f"checkpoint: {folder.relative_to(tmp_path) / 'checkpoint.pt'}"
    assert torch.load(folder / "checkpoint.pt")["step"] > 0
    assert not (folder / "checkpoint.pt.tmp").exists()


@once_per_script
def test_a_full_disk_leaves_the_last_checkpoint(script, tiny, launch, tmp_path):
    """No file may grow beyond 1000 bytes."""
    script.train(tiny())
    path = tmp_path / run_folder() / "checkpoint.pt"
    before = path.read_bytes()
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); sys.argv.pop(0)"
    run = limited + "; runpy.run_path(sys.argv[0], run_name='__main__')"
    result = launch("-c", run, script.__file__, "--resume", path, "--total-timesteps", 1000)
    assert result.returncode not in (0, None)
    assert path.read_bytes() == before


@once_per_script
def test_a_checkpoint_with_a_flipped_bit_is_refused_or_loads_as_it_was(script, tiny):
    script.train(tiny())
    path = run_folder() / "checkpoint.pt"
    content, expected, refused = path.read_bytes(), torch.load(path), 0
    rng = np.random.default_rng(0)
    for position, bit in zip(rng.integers(len(content), size=100), rng.integers(8, size=100), strict=True):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            script.Args(resume=str(path))
            loaded = torch.load(path)
        except Exception:
            refused += 1
            continue
        assert (loaded["args"], loaded["step"]) == (expected["args"], expected["step"])
        assert_same(loaded["agent"], expected["agent"])
        assert_same(loaded["optimizer"], expected["optimizer"])
    assert refused > 50
