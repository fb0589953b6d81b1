"""Steps per second of ppo_vector.py on CartPole over the number of its native environments, and of these alone.

    OPENBLAS_NUM_THREADS=1 python benchmarks/scaling.py

Every iteration has 16 steps of each environment, but 2048 in all at the least, and trains 4 epochs of 4 minibatches.
Writes benchmarks/results/scaling.csv and scaling.png. On an otherwise idle machine.
"""

import sys
import time

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from grid import RESULTS, ROOT, write
from vector_peers import alone

sys.path.insert(0, str(ROOT))
import ppo_vector as ppo

matplotlib.use("Agg")


def measure(num_envs, seconds=4.0):
    """Steps per second of rollouts, and of whole iterations."""
    num_steps = max(16, 2048 // num_envs)
    args = ppo.Args(num_envs=num_envs, num_steps=num_steps, num_minibatches=4, update_epochs=4, hidden_size=64)
    envs = ppo.make_envs(args, num_envs)
    rng = np.random.default_rng(0)
    agent = ppo.ActorCritic(envs.single_observation_space, envs.single_action_space, args)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    obs, _ = envs.reset(seed=0)
    done = np.zeros(num_envs, bool)
    spent = np.zeros(2)
    steps = 0
    while spent.sum() < seconds:
        start = time.perf_counter()
        rollout, transitions, obs, done, _ = ppo.collect_rollout(envs, agent, obs, done, args, rng)
        middle = time.perf_counter()
        advantages, returns = ppo.compute_gae(**transitions, gamma=args.gamma, gae_lambda=args.gae_lambda)
        advantages = advantages[rollout["valid"]]
        returns = returns[rollout["valid"]]
        agent.update_return_stats(returns, 1)
        ppo.ppo_update(agent, optimizer, rollout, advantages, returns, args, rng)
        spent += middle - start, time.perf_counter() - middle
        steps += int(rollout["valid"].sum())
    envs.close()
    return steps / spent[0], steps / spent.sum()


def main():
    torch.set_num_threads(1)
    sizes = [1, 4, 16, 64, 256, 1024]
    rows = []
    for num_envs in sizes:
        rows.append((num_envs, *map(round, measure(num_envs)), round(alone("CartPole-v1", num_envs, None))))
        print("{:5d} environments: rollouts {:8d} steps/s, training {:7d}, alone {:8d}".format(*rows[-1]))
    header = ["num_envs", "rollout_steps_per_second", "training_steps_per_second", "alone_steps_per_second"]
    write("scaling", header, rows)
    _, rollouts, training, limit = zip(*rows, strict=True)
    figure, axis = plt.subplots(figsize=(4.6, 3.2))
    axis.loglog(sizes, limit, "o-", label="environments alone")
    axis.loglog(sizes, rollouts, "o-", label="rollouts")
    axis.loglog(sizes, training, "o-", label="training")
    axis.set_xlabel("native CartPole environments")
    axis.set_ylabel("steps per second")
    axis.grid(alpha=0.2)
    axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "scaling.png", dpi=110)


if __name__ == "__main__":
    main()
