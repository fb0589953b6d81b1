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
SCRIPTS = {"ppo_discrete": "Discrete", "ppo_continuous": "Box"}  # and the family of actions that each trains


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


@pytest.fixture(scope="session", params=SCRIPTS)
def script(request):
    return load_script(request.param)


@pytest.fixture(scope="session")
def family(script):
    return SCRIPTS[script.__name__]


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
def collect(script, agent, probe):
    """Collect a rollout from the Recorder: rollout, env, the next obs, episodes."""

    def collect(num_steps, name="Recorder", **kwargs):
        env = script.make_env(probe(name))
        obs, _ = env.reset(seed=3)
        rollout, obs, episodes = script.collect_rollout(env, agent, obs, num_steps, np.random.default_rng(5), **kwargs)
        return SimpleNamespace(rollout=rollout, env=env, obs=obs, episodes=episodes)

    return collect


@pytest.fixture
def tiny(script, probe, tmp_path):
    """Args of a run on the Recorder that takes a fraction of a second."""

    def tiny(**flags):
        small = {"env_id": probe("Recorder"), "total_timesteps": 64, "num_steps": 16, "num_minibatches": 2}
        return script.Args(**small | {"eval_episodes": 0, "log_dir": str(tmp_path / "runs")} | flags)

    return tiny


@pytest.fixture
def made_envs(script, monkeypatch):
    """The list of the environments that the script makes during the test."""
    envs, make_env = [], script.make_env

    def recording(*args, **kwargs):
        envs.append(make_env(*args, **kwargs))
        return envs[-1]

    monkeypatch.setattr(script, "make_env", recording)
    return envs


@pytest.fixture(scope="session")
def command(script):
    """Run the script's command line in this process: its exit code, stdout and stderr."""

    def command(*flags):
        out, err, code, handler = io.StringIO(), io.StringIO(), 0, signal.getsignal(signal.SIGTERM)
        argv = mock.patch.object(sys, "argv", [script.__file__, *map(str, flags)])
        try:
            with argv, redirect_stdout(out), redirect_stderr(err):
                runpy.run_path(script.__file__, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.signal(signal.SIGTERM, handler)
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return command
