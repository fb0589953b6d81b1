"""Tiny Gymnasium environments with known answers: --env-id probe_envs:NAME-v0, with this folder on the Python path."""

import builtins
import copy
import fcntl
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Tuple

# One space of several choices or dimensions for each family of actions.
ACTIONS = {"Discrete": Discrete(30, start=-4), "Box": Box(-1, 1, (3,))}

OBSERVATION_SPACES = {
    "ObsDict": Dict(position=Box(-1, 1, (2, 2)), gear=Discrete(3, start=-1)),
    "ObsTuple": Tuple((Discrete(2), MultiBinary(3), Box(-1, 1, ()))),
    "ObsDiscrete": Discrete(4, start=2),
    "ObsMultiDiscrete": MultiDiscrete([[2, 3], [4, 5]], start=np.array([[1, 0], [-3, 9]])),
    "ObsMultiBinary": MultiBinary([2, 2]),
    "ObsImage": Box(0, 255, (4, 5, 3), np.uint8),
    "ObsFloat64": Box(-np.inf, np.inf, (2,), np.float64),
}
ACTION_SPACES = {
    "Discrete": {
        "ActDiscrete": Discrete(3),
        "ActDiscreteStart": Discrete(3, start=-1),
        "ActDiscreteInt32": Discrete(3, start=2, dtype=np.int32),
        "ActOneChoice": Discrete(1),
        "ActMultiDiscrete": MultiDiscrete([3, 2, 5]),
        "ActMultiDiscrete2D": MultiDiscrete([[2, 3], [4, 2]]),
        "ActMultiDiscreteStart": MultiDiscrete([2, 4], start=[-1, 7]),
        "ActMultiDiscreteInt32": MultiDiscrete([2, 3], dtype=np.int32),
        "ActMultiBinary": MultiBinary(3),
        "ActMultiBinary2D": MultiBinary([2, 2]),
    },
    "Box": {
        "ActAsymmetric": Box(np.array([-0.1, 2.0], np.float32), np.array([0.7, 5.0], np.float32)),
        "ActLowerBound": Box(0, np.inf, (2,)),
        "ActUpperBound": Box(-np.inf, 0.5, (2,)),
        "ActUnbounded": Box(-np.inf, np.inf, (2,)),
        "ActHuge": Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,)),
        "ActHalfHuge": Box(0, np.finfo(np.float32).max, (2,)),
        "ActMixed": Box(np.array([0, 100], np.float32), np.array([np.inf, 200], np.float32)),
        "ActAbove": Box(10, np.inf, (2,)),
        "ActBelow": Box(-np.inf, -10, (2,)),
        "ActFloat16": Box(
            np.array([-60000, 28000], np.float16), np.array([60000, 60000], np.float16), dtype=np.float16
        ),
        "ActScalar": Box(-2, 2, ()),
        "ActMatrix": Box(-3, 1, (2, 3)),
        "ActFloat64": Box(-0.3, 1.1, (2,), np.float64),
    },
}
BAD_ACTION_SPACES = {"ActTuple": Tuple((Discrete(2), Box(-1, 1, (1,)))), "ActIntegerBox": Box(0, 9, (2,), np.int64)}


class Chain(gym.Env):
    """Pays rewards[i] in step i, whatever the action, and terminates after the last one, or begins again if endless.

    The observation is the one-hot number of the step.
    """

    def __init__(self, action_space, rewards, endless=False):
        self.action_space = action_space
        self.observation_space = Box(0, 1, (len(rewards),))
        self.rewards = rewards
        self.endless = endless

    def observe(self):
        return np.eye(len(self.rewards), dtype=np.float32)[self.position % len(self.rewards)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self.observe(), {}

    def step(self, action):
        reward = self.rewards[self.position % len(self.rewards)]
        self.position += 1
        return self.observe(), reward, self.position == len(self.rewards) and not self.endless, False, {}


class Sign(gym.Env):
    """One step from an observation of 1 or -1. It pays the observation, or, with matching, most for the best action.

    The best action is 1 of Discrete(2) where the observation is 1, else 0; of a Box 0.3 or -0.3 where its bounds are
    1 and -1. `log` keeps (obs, action, reward).
    """

    def __init__(self, action_space, matching):
        self.action_space = action_space
        self.observation_space = Box(-1, 1, (1,))
        self.matching = matching
        self.log = []

    def best_action(self, obs):
        if isinstance(self.action_space, Discrete):
            return (1 + obs) / 2
        low = self.action_space.low
        high = self.action_space.high
        return (low + high) / 2 + 0.3 * obs * (high - low) / 2

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = self.np_random.choice(np.array([[-1], [1]], np.float32))
        return self.obs, {}

    def step(self, action):
        error = np.abs(action - self.best_action(self.obs)).item()
        reward = 1 - error**2 if self.matching else self.obs.item()
        self.log.append((self.obs, action, reward))
        return self.obs, reward, True, False, {}


class Recorder(gym.Env):
    """Random observations, rewards and ends, termination and truncation at once among them.

    `log` keeps the transitions (obs, action, reward, next_obs, terminated, truncated) of one environment.
    """

    def __init__(self, action_space, observation_space):
        self.action_space = action_space
        self.observation_space = copy.deepcopy(observation_space)
        self.log = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.obs = self.observation_space.sample()
        return self.obs, {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = self.np_random.normal() + float(np.sum(action, dtype=float))
        terminated, truncated = (bool(flag) for flag in self.np_random.random(2) < 0.15)
        obs = self.obs
        self.obs = self.observation_space.sample()
        self.log.append((obs, action, reward, self.obs, terminated, truncated))
        return self.obs, reward, terminated, truncated, {}


class ArrayReward(Recorder):
    """A Recorder that pays arrays of one number, as code does that computes with an action of one number."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward]), *rest


def check(passed, message):
    if not passed:
        raise ValueError(message)


class OwnNames(Recorder):
    """A Recorder that fails in a function of a name whose errors the scripts print without a traceback."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def step(self, action):
        if self.function == "check":
            check(False, "a check of mine")
        elif self.function == "mkdir":
            Path(__file__).parent.mkdir()
        else:
            torch.nn.Linear(1, 1).load_state_dict({})


class Trouble(Recorder):
    """A Recorder with trouble in one step of the process, by $PROBE_TROUBLE: "STEP obs VALUE".

    Other kinds are reward, signal and raise; their values are a number, that of the signal, the name of an error.
    """

    steps = 0

    def step(self, action):
        obs, reward, *rest = super().step(action)
        Trouble.steps += 1
        step, kind, value = os.environ.get("PROBE_TROUBLE", "0 none 0").split()
        if Trouble.steps == int(step):
            if kind == "signal":
                signal.raise_signal(int(value))
            elif kind == "raise":
                raise getattr(builtins, value)("mine")
            elif kind == "reward":
                reward = float(value)
            else:
                obs = np.full_like(obs, float(value))
        return obs, reward, *rest


def far(**kwargs):
    """A Sign whose observations are 6000 and 4000 in place of 1 and -1."""
    return gym.wrappers.TransformObservation(Sign(**kwargs), lambda obs: 5000 + 1000 * obs, Box(0, 10_000, (1,)))


class Scripted(gym.Env):
    """Episodes that end as written, whatever the action: instance i is the one whose first reset has seed i.

    One character is a step: "." goes on, T terminates, U truncates, B does both. The observation is (instance, episode,
    step), the reward 10 * instance + step.
    """

    EPISODES = (("..T", ".U", ".B", ".T", "..."), ("T", "T", ".B", "U", "..U", "..."), (".....T", "T", "T", "......"))

    def __init__(self, action_space):
        self.action_space = action_space
        self.observation_space = Box(0, 100, (3,))
        self.episode = -1

    def observe(self):
        return np.array([self.instance, self.episode, self.position], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.instance = seed
        self.episode = self.episode + 1
        self.position = 0
        return self.observe(), {}

    def step(self, action):
        end = self.EPISODES[self.instance][self.episode][self.position]
        self.position += 1
        return self.observe(), 10.0 * self.instance + self.position, end in "TB", end in "UB", {}


class Staggered(Chain):
    """A Chain that begins anywhere in it. If endless, it is truncated after 1 to 5 steps."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.integers(len(self.rewards))
        self.steps_left = self.np_random.integers(1, 6)
        return self.observe(), {}

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        self.steps_left -= 1
        return obs, reward, terminated, self.endless and self.steps_left == 0, info


class NativeRecorder(gym.vector.SyncVectorEnv):
    """Recorders in a vector environment of their own, as env.vector_entry_point."""

    def __init__(self, num_envs, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP, told=True, **spaces):
        super().__init__([partial(Recorder, **spaces)] * num_envs, autoreset_mode=autoreset_mode)
        if not told:
            del self.metadata["autoreset_mode"]

    def reset(self, *, seed=None, options=None):
        assert seed is None or isinstance(seed, int)
        return super().reset(seed=seed, options=options)

    def step(self, actions):
        assert self.action_space.contains(actions), f"{actions!r} is not in {self.action_space}"
        return super().step(actions)


class Accident(Recorder):
    """A Recorder whose process and forks hold a lock on $PROBE_FOLDER/alive, and that may have a $PROBE_ACCIDENT.

    One of all that have the folder is, in its 40th step, to "raise" an error, to "kill" its process, to "hang" or to
    "compute".
    """

    accident = os.environ.get("PROBE_ACCIDENT")

    def __init__(self, **spaces):
        super().__init__(**spaces)
        fcntl.flock(os.open(Path(os.environ["PROBE_FOLDER"], "alive"), os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)

    def step(self, action):
        if len(self.log) == 40 and self.accident in ("raise", "kill", "hang", "compute") and first_accident():
            if self.accident == "raise":
                raise RuntimeError("an accident in step 40")
            if self.accident == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.accident == "compute":  # where Python sees no signal
                sum(range(10**11))
            time.sleep(600)
        return super().step(action)


def first_accident():
    """True once for all processes that have the folder."""
    try:
        Path(os.environ["PROBE_FOLDER"], "accident").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Same(Recorder):
    """A Recorder whose observation is always the same."""

    def __init__(self, **spaces):
        super().__init__(**spaces)
        self.observation_space.sample = lambda: np.array([0.3, -0.2, 0.5], np.float32)


class Filmed(Recorder):
    """A Recorder that can be filmed, and of which only one may be open at a time."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    opened = False

    def __init__(self, render_mode=None, **spaces):
        assert not Filmed.opened, "another one is open"
        super().__init__(**spaces)
        self.render_mode = render_mode
        Filmed.opened = True

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)

    def close(self):
        Filmed.opened = False


class GlobalRandom(Recorder):
    """A Recorder with rewards from the global generator of NumPy."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.random.normal(), *rest


class Changing(Recorder):
    """A Recorder that changes its action in place."""

    def step(self, action):
        result = super().step(action)
        action -= 1
        return result


class Table(gym.Env):
    """An endless random Markov decision process of 6 states and 3 actions. `scale` multiplies the rewards."""

    RNG = np.random.default_rng(3)
    TRANSITIONS = RNG.dirichlet(np.full(6, 0.3), (6, 3))  # of state, action, next state
    REWARDS = RNG.normal(size=(6, 3))  # of state, action
    action_space = Discrete(3)
    observation_space = Discrete(6)

    def __init__(self, scale):
        self.scale = scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(6))
        return self.state, {}

    def step(self, action):
        reward = self.scale * self.REWARDS[self.state, action]
        self.state = int(self.np_random.choice(6, p=self.TRANSITIONS[self.state, action]))
        return self.state, reward, False, False, {}


class Hasty(gym.Env):
    """Half of its episodes return 1 after 2 steps, the others 0 after 100."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.good = self.np_random.random() < 0.5
        self.left = 2 if self.good else 100
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        end = self.left == 0
        return np.zeros(2, np.float32), float(self.good and end), end, False, {}


class Sized(Recorder):
    """A Recorder whose observations are so large, and 0 in this share of the steps."""

    def __init__(self, size, zeros=0.0, **spaces):
        super().__init__(**spaces)
        self.size = size
        self.zeros = zeros
        self.observation_space.sample = self.draw

    def draw(self):
        size = self.size * (self.np_random.random() >= self.zeros)
        return size * self.np_random.normal(1, 0.1, 3).astype(np.float32)


class Scales(gym.Env):
    """Pays 1 for the sign of the first feature; the last one is near `scale`, with little change; all in `unit`s."""

    observation_space = Box(-np.inf, np.inf, (6,))
    action_space = Discrete(2)

    def __init__(self, scale, unit=1):
        self.scale = scale
        self.unit = unit

    def observe(self):
        self.x = self.np_random.standard_normal(6)
        return np.float32(self.unit * np.append(self.x[:5], self.scale * (1 + 0.01 * self.x[5])))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        reward = float((self.x[0] > 0) == action)
        return self.observe(), reward, False, False, {}


class Missing(Scales):
    """Scales with -9999 in place of one number in 100."""

    def observe(self):
        return np.where(self.np_random.random(6) < 0.01, np.float32(-9999), super().observe())


class PythonRandom(Recorder):
    """A Recorder with rewards from Python's own generator."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, random.random(), *rest


class OddInfo(Recorder):
    """A Recorder with its own ideas of an info, by `kind`."""

    def __init__(self, kind, **spaces):
        super().__init__(**spaces)
        self.kind = kind
        self.info = {}

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], self.make_info()

    def step(self, action):
        return *super().step(action)[:4], self.make_info()

    def make_info(self):
        n = len(self.log)
        return {
            "reused": self.info,
            "episode": {"episode": {"r": 1e9, "l": -1}, "_episode": True, "final_info": n},
            "ragged": {"path": np.arange(n % 3), "pair": [(1, 2), 3][n % 2]},
            "mixed": {"text": "a" * n, "nothing": None, "number": [n, None, "n"][n % 3], 7: object()},
            "nested": {"episode": {"statistics": {"r": np.arange(n % 2)}}},
        }[self.kind]


class Painter(Recorder):
    """A Recorder of which render gives `picture`."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, picture, render_mode=None, **spaces):
        super().__init__(**spaces)
        self.picture = picture
        self.render_mode = render_mode

    def render(self):
        return self.picture


class Unpainted(Recorder):
    """A Recorder that takes a render_mode and cannot render."""

    def __init__(self, render_mode=None, **spaces):
        super().__init__(**spaces)
        self.render_mode = render_mode


class Mission(gym.Space):
    """A space that Gymnasium does not know."""

    def sample(self, mask=None, probability=None):
        return "go"

    def contains(self, x):
        return x == "go"

    def __eq__(self, other):
        return isinstance(other, Mission)


class Sizable(Chain):
    """A Chain with an argument."""

    def __init__(self, length=2, **kwargs):
        super().__init__(rewards=[1.0] * length, **kwargs)


class Popping(Chain):
    """A Chain that changes the dict that it gets."""

    def __init__(self, config, **kwargs):
        super().__init__(rewards=[config.pop("reward", 0.0)], **kwargs)


class AnyArgument(Chain):
    """A Chain with an argument that it does not use."""

    def __init__(self, data, **kwargs):
        super().__init__(rewards=[0.0], **kwargs)


class Faulty(Recorder):
    """A Recorder with a bug: an error of this type in `place`."""

    def __init__(self, error, place, **spaces):
        super().__init__(**spaces)
        self.error = error
        self.place = place
        self.fail("init")

    def fail(self, place):
        if place == self.place:
            raise self.error("a bug of mine")

    def reset(self, **kwargs):
        self.fail("reset")
        return super().reset(**kwargs)

    def step(self, action):
        self.fail("step")
        return super().step(action)


BUGS = (ValueError, TypeError, KeyError, gym.error.Error, gym.error.ResetNeeded, FloatingPointError)
BUGS += RuntimeError, NotImplementedError


def register(name, entry_point, time_limit=None, vector_entry_point=None, **kwargs):
    gym.register(
        f"{name}-v0", entry_point, max_episode_steps=time_limit, vector_entry_point=vector_entry_point, kwargs=kwargs
    )


VECTOR = Box(-1, 1, (3,))

# For one family of actions: Chains and Signs have one action or dimension, the others several.
for family, single in (("Discrete", Discrete(2)), ("Box", Box(1, 5, (1,)))):
    register(f"OneStep{family}", Chain, action_space=single, rewards=[1.0])
    register(f"TwoSteps{family}", Chain, action_space=single, rewards=[0.0, 1.0])
    register(f"Endless{family}", Chain, action_space=single, rewards=[1.0], endless=True)
    register(f"Truncated{family}", Chain, time_limit=5, action_space=single, rewards=[1.0], endless=True)
    register(f"Sign{family}", Sign, action_space=single, matching=False)
    register(f"Match{family}", Sign, action_space=single, matching=True)
    register(f"FarMatch{family}", far, action_space=single, matching=True)
    register(f"Argument{family}", Sizable, action_space=ACTIONS[family])
    register(f"Popping{family}", Popping, action_space=ACTIONS[family])
    register(f"AnyArgument{family}", AnyArgument, action_space=ACTIONS[family])
    spaces = {"action_space": ACTIONS[family], "observation_space": VECTOR}
    for probe in (Recorder, Trouble, ArrayReward, Same, Filmed, GlobalRandom, PythonRandom):
        register(f"{probe.__name__}{family}", probe, **spaces)
    register(f"probe/Recorder{family}", Recorder, **spaces)
    register(f"NativeRecorder{family}", Recorder, vector_entry_point=NativeRecorder, **spaces)
    for exponent in (-6, 0, 4, 8):
        register(f"Size{exponent}{family}", Sized, size=10.0**exponent, **spaces)
    register(f"MostlyZero{family}", Sized, size=1.0, zeros=0.7, **spaces)
    for kind in ("reused", "episode", "ragged", "mixed", "nested"):
        register(f"Info{kind}{family}", OddInfo, kind=kind, **spaces)
    for function in ("check", "mkdir", "load_state_dict"):
        register(f"Own_{function}{family}", OwnNames, function=function, **spaces)
    register(f"NoPicture{family}", Unpainted, **spaces)
    register(f"NonePicture{family}", Painter, picture=None, **spaces)
    register(f"ListPicture{family}", Painter, picture=np.zeros((8, 8, 3), np.uint8).tolist(), **spaces)
    for error in BUGS:
        for place in ("init", "reset", "step"):
            register(f"Bug{error.__name__}{place}{family}", Faulty, error=error, place=place, **spaces)
    bad = {"ObsSequence": Sequence(Discrete(2)), "ObsMission": Dict(x=Box(-1, 1, (2,)), m=Mission())}
    for name, space in (OBSERVATION_SPACES | bad).items():
        register(f"{name}{family}", Recorder, action_space=ACTIONS[family], observation_space=space)
    for name, space in ACTION_SPACES[family].items():
        register(name, Recorder, action_space=space, observation_space=VECTOR)

# For one kind of actions, or of an action that does not matter.
for name, space in BAD_ACTION_SPACES.items():
    register(name, Recorder, action_space=space, observation_space=VECTOR)
register("Changing", Changing, action_space=MultiDiscrete([3, 2]), observation_space=VECTOR)
register("ManyChoices", Recorder, action_space=MultiDiscrete([30] * 20), observation_space=VECTOR)
for scale in (1e-4, 1, 1e4):
    register(f"Table{scale:g}", Table, time_limit=50, scale=scale)
for exponent in (4, 6):
    register(f"Scales{exponent}", Scales, time_limit=100, scale=10.0**exponent)
register("Missing", Missing, time_limit=100, scale=1)
register("Tiny", Scales, time_limit=100, scale=1, unit=1e-4)
register("Hasty", Hasty)
register("NeedsExtra", "no_such_package.envs:Env")

# For ppo_vector.py.
DISCRETE = ACTIONS["Discrete"]
register("Scripted", Scripted, action_space=DISCRETE)
register("StaggeredEnd", Staggered, action_space=DISCRETE, rewards=[1.0, 0.0, -2.0, 3.0])
register("StaggeredEndless", Staggered, action_space=DISCRETE, rewards=[1.0, 0.0, 2.0], endless=True)
spaces = {"action_space": DISCRETE, "observation_space": VECTOR}
register("Accident", Accident, **spaces)
for name, space in OBSERVATION_SPACES.items():
    register(
        f"Native{name}", Recorder, vector_entry_point=NativeRecorder, action_space=DISCRETE, observation_space=space
    )
same_step = partial(NativeRecorder, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
register("NativeSameStep", Recorder, vector_entry_point=same_step, **spaces)
register("NativeUntold", Recorder, vector_entry_point=partial(NativeRecorder, told=False), **spaces)
