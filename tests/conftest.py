import importlib
import io
import runpy
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import probe_envs
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
SCRIPTS = {"ppo_discrete": ["Discrete"], "ppo_continuous": ["Box"], "ppo_vector": ["Discrete", "Box"]}
CASES = [(script, family) for script, families in SCRIPTS.items() for family in families]
# For what does not depend on the actions: each script once.
once_per_script = pytest.mark.parametrize(
    "case", [(script, families[0]) for script, families in SCRIPTS.items()], ids=SCRIPTS, indirect=True
)


def load_script(name):
    return importlib.import_module(name)


def read_scalars(folder):
    """{tag: [(step, value), ...]} of a run folder, without the speed, which no two runs share."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in scalars.items() if tag != "charts/SPS"}


def assert_same_weights(one, other):
    """Equal to the bit: the state_dicts of two agents."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def sandbox(tmp_path, monkeypatch):
    """Each test runs in an empty folder, and torch keeps one thread."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


class Player:
    """Collects rollouts on an environment of one's own by any script, in envs.unwrapped.log of each its transitions."""

    def __init__(self, script, agent, env_id, num_envs=3):
        self.script, self.agent, self.ended = script, agent, []
        if hasattr(script, "make_envs"):
            self.env = script.make_envs(env_id, num_envs, "sync")
            self.envs, self.ended = self.env.envs, [np.zeros(num_envs, bool)]
        else:
            self.env = script.make_env(env_id)
            self.envs = [self.env]
        self.obs, _ = self.env.reset(seed=3)

    def play(self, num_steps, rng, first_step=0):
        """One rollout and its episodes; of a vector environment with valid (T, N), False where a row is a reset."""
        rollout, self.obs, *self.ended, episodes = self.script.collect_rollout(
            self.env, self.agent, self.obs, *self.ended, num_steps, rng, first_step
        )
        return rollout, episodes

    @property
    def logs(self):
        return [env.unwrapped.log for env in self.envs]


def column(rollout, i):
    """The rows of environment i, without those of a reset."""
    if "valid" not in rollout:
        return {name: np.asarray(value) for name, value in rollout.items()}
    return {name: np.asarray(value)[rollout["valid"][:, i], i] for name, value in rollout.items()}


def all_rows(rollout, array):
    """An array of the rollout's shape as (rows, ...), without the rows of a reset."""
    return array[torch.as_tensor(rollout["valid"])] if "valid" in rollout else array


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
    torch.manual_seed(0)
    agent = script.ActorCritic(3, action_space, 16)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return agent


@pytest.fixture
def player(script, agent, probe):
    return lambda name="Recorder": Player(script, agent, probe(name))


@pytest.fixture
def tiny(script, probe, tmp_path):
    """Args of a run on the Recorder that takes a fraction of a second."""

    def tiny(**flags):
        small = {"env_id": probe("Recorder"), "total_timesteps": 64, "num_steps": 16, "num_minibatches": 2}
        if hasattr(script.Args, "num_envs"):
            small |= {"num_envs": 2, "num_steps": 8}
        return script.Args(**small | {"eval_episodes": 0, "log_dir": str(tmp_path / "runs")} | flags)

    return tiny


@pytest.fixture
def record(script, monkeypatch):
    """record("make_env") is the list, growing through the test, of what that function of the script returns."""

    def record(name):
        function, results = getattr(script, name), []

        def recording(*args, **kwargs):
            results.append(function(*args, **kwargs))
            return results[-1]

        monkeypatch.setattr(script, name, recording)
        return results

    return record


@pytest.fixture(scope="session")
def command(script):
    """Run the script's command line in this process: its exit code, stdout and stderr."""

    def command(*flags):
        out, err, code = io.StringIO(), io.StringIO(), 0
        handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        argv = mock.patch.object(sys, "argv", [script.__file__, *map(str, flags)])
        try:
            with argv, redirect_stdout(out), redirect_stderr(err):
                runpy.run_path(script.__file__, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers:
                signal.signal(number, handler)
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return command
