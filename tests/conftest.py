import dataclasses
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

ROOT = Path(__file__).parent.parent
TESTS = Path(__file__).parent
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".pytest_cache" / "hypothesis"))
SCRIPTS = {"ppo_discrete": ["Discrete"], "ppo_continuous": ["Box"], "ppo_vector": ["Discrete", "Box"]}
OBS_SPACE = gym.spaces.Box(-1, 1, (3,))
CASES = [(script, family) for script, families in SCRIPTS.items() for family in families]


def only(*cases):
    """A mark for tests that are for these cases."""
    return pytest.mark.parametrize("case", cases, ids="-".join, indirect=True)


# For what does not depend on the actions: each script once.
once_per_script = only(*((script, families[0]) for script, families in SCRIPTS.items()))
# For processes, which take seconds to start; ppo_continuous.py has the train and main of ppo_discrete.py (test_parity).
once_per_main = only(("ppo_discrete", "Discrete"), ("ppo_vector", "Discrete"))
discrete_cases = once_per_main
box_cases = only(("ppo_continuous", "Box"), ("ppo_vector", "Box"))
single_cases = only(("ppo_discrete", "Discrete"), ("ppo_continuous", "Box"))
discrete_script = only(("ppo_discrete", "Discrete"))
vector_script = only(("ppo_vector", "Discrete"))
vector_cases = only(("ppo_vector", "Discrete"), ("ppo_vector", "Box"))


STATUS = r" *\d+%  step \d+  mean return (nan|-?\d+\.\d)  \d+ steps/s  \d+ s left *"
SOLVED = r"solved: mean return -?\d+\.\d over the last 20 episodes at step \d+"
EVALUATION = r"evaluation: mean return -?\d+\.\d \+/- \d+\.\d over 3 episodes"
CHECKPOINT = r"checkpoint: (.+/checkpoint\.pt)"
TAGS = {
    *("charts/episodic_return", "charts/episodic_length", "charts/episodic_return_20"),
    *("charts/learning_rate", "charts/SPS", "eval/mean_return"),
    *("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"),
    *("losses/approx_kl", "losses/clipfrac", "losses/explained_variance"),
}


def load_script(name):
    return importlib.import_module(name)


def read_scalars(folder):
    """{tag: [(step, value), ...]} of a run folder, without the speed, which no two runs share."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in scalars.items() if tag != "charts/SPS"}


def make_envs(script, args, num_envs=1):
    """The environment of a script, a vector of them in ppo_vector.py."""
    return script.make_envs(args, num_envs) if hasattr(script, "make_envs") else script.make_env(args)


def rollout_size(script, num_steps, num_envs):
    """Flags for rollouts of as many steps in all, in one environment or in several."""
    if hasattr(script.Args, "num_envs"):
        return {"num_steps": num_steps, "num_envs": num_envs}
    return {"num_steps": num_steps * num_envs}


def as_words(flags):
    """A dict of flags as one types them."""
    return [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def make_agent(script, env, args):
    """A fresh agent for the spaces of such an environment."""
    obs_space = getattr(env, "single_observation_space", env.observation_space)
    action_space = getattr(env, "single_action_space", env.action_space)
    return script.ActorCritic(obs_space, action_space, args)


def column(rollout, transitions, i):
    """The transitions of environment i, without the steps that were resets, and the rows of the rollout."""
    valid = rollout["valid"] if rollout["valid"].ndim == 2 else rollout["valid"][:, None]
    rows = np.flatnonzero(valid.ravel()).searchsorted(np.flatnonzero(valid[:, i]) * valid.shape[1] + i)
    one = {name: np.reshape(x, valid.shape)[valid[:, i], i] for name, x in transitions.items()}
    return one | {name: rollout[name].numpy()[rows] for name in ("obs", "actions", "logprobs")}


def statistics(rollouts, targets):
    """Root mean square of the observations, mean and standard deviation of the returns of recorded rollouts.

    The returns of each rollout weigh the same, although in a vector environment some rows are resets.
    """
    squares = np.concatenate([rollout["obs"].numpy() ** 2 for rollout, *_ in rollouts])
    returns = [x[rollout.get("valid", ...)].ravel() for (rollout, *_), (_, x) in zip(rollouts, targets, strict=True)]
    mean = np.mean([x.mean() for x in returns])
    return np.sqrt(squares.mean(0)), mean, np.sqrt(np.mean([(x**2).mean() for x in returns]) - mean**2)


def assert_same(one, other):
    """Equal to the bit: two state_dicts, or what else holds arrays."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def sandbox(tmp_path, monkeypatch):
    """Each test runs in an empty folder. torch has one thread and draws the same numbers whatever ran before."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Event files are read in the order of their names, which end in a count: 10 comes before 9, but 1010 after 1009
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))


class Player:
    """Collects rollouts on an environment by any script. `logs` are the transitions that the environments saw."""

    def __init__(self, script, agent, env_id, num_envs=3, seed=3, **flags):
        self.script = script
        self.agent = agent
        self.vector = hasattr(script, "make_envs")
        mode = {"vectorization_mode": "sync"} if self.vector else {}
        self.args = script.Args(env_id=env_id, **mode | flags)
        self.env = make_envs(script, self.args, num_envs)
        self.done = [np.zeros(num_envs, bool)] if self.vector else []
        self.obs, _ = self.env.reset(seed=seed)

    @property
    def logs(self):
        return [env.unwrapped.log for env in (self.env.unwrapped.envs if self.vector else [self.env])]

    def play(self, num_steps, rng):
        """One rollout, its transitions and its (return, length) of each episode."""
        args = dataclasses.replace(self.args, num_steps=num_steps, num_minibatches=1)
        rollout, transitions, self.obs, *self.done, episodes = self.script.collect_rollout(
            self.env, self.agent, self.obs, *self.done, args, rng
        )
        rollout.setdefault("valid", np.ones(num_steps, bool))
        return rollout, transitions, [(episode["r"], episode["l"]) for episode in episodes]


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture(scope="session")
def script(case):
    return load_script(case[0])


@pytest.fixture(scope="session")
def family(case):
    return case[1]


@pytest.fixture(scope="session")
def probe(family):
    """From the name of a probe environment to its id for the actions of the script."""
    return lambda name: f"probe_envs:{name}{family}-v0"


@pytest.fixture(scope="session")
def action_space(family):
    return probe_envs.ACTIONS[family]


@pytest.fixture
def agent(script, action_space):
    """An agent for the Recorder with weights so large that its policy is far from uniform."""
    agent = script.ActorCritic(OBS_SPACE, action_space, script.Args(hidden_size=16))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    agent.update_obs_stats(torch.randn(50, 3) * 0.4 + 0.1)
    agent.update_return_stats(np.arange(9.0), 1)
    return agent


@pytest.fixture
def player(script, agent, probe):
    return lambda name="Recorder", **flags: Player(script, agent, probe(name), **flags)


@pytest.fixture
def tiny(script, probe, tmp_path):
    """Args of a run on the Recorder that takes a fraction of a second."""

    def tiny(**flags):
        small = {"env_id": probe("Recorder"), "total_timesteps": 64, "num_minibatches": 2, "norm_obs": False}
        small |= rollout_size(script, 8, 2) | {"eval_episodes": 0, "log_dir": str(tmp_path / "runs")}
        return script.Args(**small | flags)

    return tiny


@pytest.fixture
def flags(probe, script):
    """A run of 10 iterations on a probe environment, a checkpoint after every second one."""
    run = {"env_id": probe("Trouble"), "total_timesteps": 320, "num_minibatches": 2, "checkpoint_interval": 2}
    return as_words(run | rollout_size(script, 16, 2) | {"update_epochs": 2, "eval_episodes": 3, "hidden_size": 8})


@pytest.fixture
def record(script, monkeypatch):
    """record("make_env") is the list, growing through the test, of what that function of the script returns.

    With `before`, a function of its arguments, the list is of what that one returns before each call.
    """

    def record(name, before=None):
        function = getattr(script, name)
        records = []

        def recording(*args, **kwargs):
            if before:
                records.append(before(*args))
            result = function(*args, **kwargs)
            if not before:
                records.append(result)
            return result

        monkeypatch.setattr(script, name, recording)
        return records

    return record


@pytest.fixture
def edited(script, tmp_path):
    """edited((old, new), ...) is the path of a copy of the script with other texts."""

    def edited(*pairs):
        source = Path(script.__file__).read_text()
        for old, new in pairs:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        path = tmp_path / "edited.py"
        path.write_text(source)
        return path

    return edited


@pytest.fixture
def launch(tmp_path):
    """Run a command line in a process of its own, with the probe environments at hand."""

    def launch(path, *flags, launcher=(), **environment):
        environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"} | environment
        command = [sys.executable, *launcher, str(path), *map(str, flags)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return launch


def run_folder(log_dir="runs"):
    (folder,) = Path(log_dir).iterdir()
    return folder


def load(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


@pytest.fixture
def main(script, monkeypatch, capsys):
    """Run the command line in this process; returns the exit code and what it printed on stderr, as one line."""

    def main(*flags):
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, flags)])
        try:
            runpy.run_path(script.__file__, run_name="__main__")
        except SystemExit as stop:
            code = 1 if isinstance(stop.code, str) else stop.code
            words = [*re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().err).split()]
            return code, " ".join([stop.code if isinstance(stop.code, str) else "", *words]).strip()
        return 0, capsys.readouterr().err

    return main
