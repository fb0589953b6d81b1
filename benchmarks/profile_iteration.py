"""Where the time of a training iteration goes, in microseconds a step.

python benchmarks/profile_iteration.py CartPole-v1
"""

import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from grid import ROOT

sys.path.insert(0, str(ROOT))
import ppo_discrete as ppo


def clock(function, repeats):
    """Best of 5 timings of repeats calls, in seconds a call."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        times.append((time.perf_counter() - start) / repeats)
    return min(times)


def main(env_id):
    torch.set_num_threads(1)
    args = ppo.Args(env_id=env_id)
    rng = np.random.default_rng(0)
    env = ppo.make_env(args)
    steps = args.num_steps
    agent = ppo.ActorCritic(env.observation_space, env.action_space, args)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    obs, _ = env.reset(seed=0)
    rollout, transitions, _, _ = ppo.collect_rollout(env, agent, obs, args, rng)

    bare = gym.make(env_id)
    bare.reset(seed=0)
    actions = iter(np.random.default_rng(0).integers(bare.action_space.n, size=10**7).tolist())

    def bare_step():
        _, _, terminated, truncated, _ = bare.step(next(actions))
        if terminated or truncated:
            bare.reset()

    weights = {name: value.numpy() for name, value in agent.state_dict().items()}
    row = rollout["obs"][0].numpy()

    def forward():
        with torch.no_grad():
            outputs, _ = agent(rollout["obs"])
            agent.log_prob_and_entropy(outputs, rollout["actions"])
            agent(rollout["obs"])

    def estimate():
        return ppo.compute_gae(**transitions, gamma=args.gamma, gae_lambda=args.gae_lambda)

    advantages, returns = estimate()
    agent.update_return_stats(returns, 1)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "checkpoint.pt")
    checkpoint_steps = steps * args.checkpoint_interval
    parts = {
        "environment alone": clock(bare_step, 5000),
        "action": clock(lambda: agent.sample(agent.numpy_actor(row, weights), rng), 5000),
        "values and log-probabilities": clock(forward, 20) / steps,
        "whole rollout": clock(lambda: ppo.collect_rollout(env, agent, env.reset()[0], args, rng), 5) / steps,
        "advantages": clock(estimate, 20) / steps,
        "update": clock(lambda: ppo.ppo_update(agent, optimizer, rollout, advantages, returns, args, rng), 3) / steps,
        "checkpoint": clock(lambda: ppo.save_checkpoint(path, args, 0, agent, optimizer), 20) / checkpoint_steps,
    }
    parts["rollout beyond the environment"] = parts["whole rollout"] - parts["environment alone"]
    minibatches = args.num_minibatches * args.update_epochs
    for name, seconds in parts.items():
        print(f"{name:32s} {seconds * 1e6:8.2f} us a step")
    print(
        f"one minibatch of {steps // args.num_minibatches} rows: {parts['update'] * steps / minibatches * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
