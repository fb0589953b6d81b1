"""Train Stable-Baselines3 PPO by the rules of our scripts; grid.py and pairs.py run it in SB3's own environment.

    python benchmarks/sb3_peer.py SETTINGS ENV_ID SEED STEPS [TARGET [EVALUATION_EPISODES]]

SETTINGS: `defaults`, SB3's; `zoo`, RL Zoo's tuned settings of the environment; `same`, the work of our
single-environment scripts at 10 epochs of minibatches of 256; `dummy-N` and `subproc-N`, the work of CleanRL's ppo.py
in N environments; the last three on a shared 64-64 network like ours. Stops at a 20-episode mean of TARGET and prints
what our scripts print.
"""

import sys
import time

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
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
LANDER = (16, False, {"n_steps": 1024, "n_epochs": 4, "gamma": 0.999, "gae_lambda": 0.98, "ent_coef": 0.01})
ZOO = {  # number of environments, VecNormalize, settings: hyperparams/ppo.yml of RL Zoo at 22e3ff2
    "CartPole-v1": (
        8,
        False,
        {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}
        | {"learning_rate": linear(1e-3), "clip_range": linear(0.2)},
    ),
    "Acrobot-v1": (16, True, {"n_steps": 256, "n_epochs": 4, "gae_lambda": 0.94}),
    "LunarLander-v3": LANDER,
    "LunarLanderContinuous-v3": LANDER,
    "Pendulum-v1": (
        4,
        False,
        {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4},
    ),
    "BipedalWalker-v3": (32, True, {"n_steps": 2048, "gamma": 0.999, "clip_range": 0.18}),
    "MountainCar-v0": (16, True, {"n_steps": 16, "n_epochs": 4, "gae_lambda": 0.98}),
    "MountainCarContinuous-v0": (
        1,
        True,
        {"n_steps": 8, "batch_size": 256, "gamma": 0.9999, "gae_lambda": 0.9, "learning_rate": 7.77e-5}
        | {"clip_range": 0.1, "ent_coef": 0.00429, "vf_coef": 0.19, "max_grad_norm": 5, "use_sde": True}
        | {"policy_kwargs": {"log_std_init": -3.29, "ortho_init": False}},
    ),
}
SETTINGS = {
    "defaults": (1, False, {}),
    "same": (1, False, {"n_steps": 2048, "batch_size": 256, "n_epochs": 10} | SHARED),
}


class Report(BaseCallback):
    """Prints a status line of our scripts after each rollout, and stops at the target."""

    def __init__(self, target):
        super().__init__()
        self.target, self.returns, self.start = target, [], time.perf_counter()

    def _on_step(self):
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        solved = len(self.returns) >= 20 and np.mean(self.returns[-20:]) >= self.target
        if solved:
            print(f"solved: mean return {np.mean(self.returns[-20:]):.1f} at step {self.num_timesteps}")
        return not solved

    def _on_rollout_end(self):
        mean = np.mean(self.returns[-20:]) if len(self.returns) >= 20 else np.nan
        speed = self.num_timesteps / (time.perf_counter() - self.start)
        print(f"step {self.num_timesteps}  mean return {mean:.1f}  {speed:.0f} steps/s", flush=True)


def main(settings, env_id, seed, steps, target="inf", episodes="0"):
    torch.set_num_threads(1)
    settings, _, count = settings.partition("-")
    if count:
        work = {"n_steps": 128, "batch_size": 32 * int(count), "n_epochs": 4}
        num_envs, normalize, keywords = int(count), False, work | SHARED
    else:
        num_envs, normalize, keywords = ZOO[env_id] if settings == "zoo" else SETTINGS[settings]
    processes = SubprocVecEnv if settings == "subproc" else None
    envs = make_vec_env(env_id, n_envs=num_envs, seed=int(seed), vec_env_cls=processes)
    if normalize:
        envs = VecNormalize(envs, gamma=keywords.get("gamma", 0.99))
    model = PPO("MlpPolicy", envs, seed=int(seed), device="cpu", **keywords)
    report = Report(float(target))
    model.learn(int(steps), callback=report)
    print(f"{model.num_timesteps / (time.perf_counter() - report.start):.0f} steps/s")
    if int(episodes):
        test_envs = make_vec_env(env_id, seed=int(seed) + 10**6)
        if normalize:
            test_envs = VecNormalize(test_envs, training=False, norm_reward=False)
            test_envs.obs_rms = envs.obs_rms
        mean, std = evaluate_policy(model, test_envs, int(episodes), deterministic=True)
        print(f"evaluation: mean return {mean:.1f} +/- {std:.1f} over {episodes} episodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
