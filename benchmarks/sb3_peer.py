"""Train Stable-Baselines3 PPO, stopping by the rule of --target-return; run by pairs.py in SB3's own environment.

    python benchmarks/sb3_peer.py SETTINGS ENV_ID SEED STEPS [TARGET]

SETTINGS: `zoo`, RL Zoo's tuned CartPole settings; `same`, the work of our single-environment scripts at 10 epochs of
minibatches of 256; `vector`, the work of CleanRL's ppo.py; the last two on a shared 64-64 network like ours.
Prints the step at which the target was reached and the training steps per second.
"""

import sys
import time

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


def linear(value):
    return lambda progress: progress * value


class SharedBackbone(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 64)
        inputs = observation_space.shape[0]
        self.layers = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())

    def forward(self, obs):
        return self.layers(obs)


SHARED = {"policy_kwargs": {"features_extractor_class": SharedBackbone, "net_arch": []}}
ZOO = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}
SETTINGS = {  # number of environments, settings
    "zoo": (8, ZOO | {"learning_rate": linear(1e-3), "clip_range": linear(0.2)}),
    "same": (1, {"n_steps": 2048, "batch_size": 256, "n_epochs": 10} | SHARED),
    "vector": (4, {"n_steps": 128, "batch_size": 128, "n_epochs": 4} | SHARED),
}


class StopAtTarget(BaseCallback):
    def __init__(self, target):
        super().__init__()
        self.target, self.returns, self.solved_at = target, [], None

    def _on_step(self):
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if len(self.returns) >= 20 and np.mean(self.returns[-20:]) >= self.target:
            self.solved_at = self.num_timesteps
        return self.solved_at is None


def main(settings, env_id, seed, steps, target="inf"):
    torch.set_num_threads(1)
    num_envs, keywords = SETTINGS[settings]
    callback = StopAtTarget(float(target))
    envs = make_vec_env(env_id, n_envs=num_envs, seed=int(seed))
    model = PPO("MlpPolicy", envs, seed=int(seed), device="cpu", **keywords)
    start = time.perf_counter()
    model.learn(int(steps), callback=callback)
    print(f"solved at {callback.solved_at}, {model.num_timesteps / (time.perf_counter() - start):.0f} steps/s")


if __name__ == "__main__":
    main(*sys.argv[1:])
