"""EnvPool's environments for ppo_vector.py (pip install envpool); --env-kwargs '{"num_threads": 2}' goes to EnvPool.

PYTHONPATH=benchmarks python ppo_vector.py --env-id envpool_envs:EnvPool/LunarLander-v3
"""

from typing import ClassVar

import envpool
import gymnasium as gym


class EnvPool(gym.vector.VectorEnv):
    """An engine that is made again at each reset with a seed: it takes one only when it is made."""

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, task_id, num_envs, **kwargs):
        self.make = lambda seed: envpool.make_gymnasium(task_id, num_envs=num_envs, seed=seed, **kwargs)
        self.engine = self.make(0)
        self.num_envs = num_envs
        self.single_observation_space = self.engine.observation_space
        self.single_action_space = self.engine.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.engine = self.make(seed)
        return self.engine.reset()[0], {}

    def step(self, actions):
        return *self.engine.step(actions.astype(self.single_action_space.dtype))[:4], {}


for task_id in envpool.list_all_envs():
    name = f"EnvPool/{task_id.replace('/', '_')}"
    gym.register(name, vector_entry_point=EnvPool, kwargs={"task_id": task_id, "num_threads": 1})
