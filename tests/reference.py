"""Second implementations, by torch.distributions and plain loops, to hold the scripts against."""

import numpy as np
import torch
from torch.distributions import Categorical, Independent, Normal


def policy(agent, obs):
    """The torch distribution at observations, and the values."""
    outputs, values = agent(obs)
    if getattr(agent, "log_std", None) is None:
        return Categorical(logits=outputs), values
    return Independent(Normal(outputs, agent.log_std.exp()), 1), values


def gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """Advantages (T,) by the definition: a sum of discounted temporal differences to the end of the episode."""
    advantages = []
    for t in range(len(rewards)):
        total = 0.0
        weight = 1.0
        for i in range(t, len(rewards)):
            target = rewards[i] if terminated[i] else rewards[i] + gamma * next_values[i]
            total += weight * (target - values[i])
            weight *= gamma * gae_lambda
            if terminated[i] or truncated[i]:
                break
        advantages.append(total)
    return np.array(advantages)


def ppo_update(agent, rollout, advantages, returns, args, rng):
    """Train the agent by the textbook loss and an Adam of its own; returns the metrics."""
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    explained_variance = 1 - advantages.var() / returns.var()
    advantages, returns = (torch.as_tensor(x, dtype=torch.float32) for x in (advantages, returns))
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    scale = agent.return_std.item()
    rows_of_metrics = []
    for _ in range(args.update_epochs):
        for rows in np.array_split(rng.permutation(len(returns)), args.num_minibatches):
            distribution, values = policy(agent, rollout["obs"][rows])
            logratios = distribution.log_prob(rollout["actions"][rows]) - rollout["logprobs"][rows]
            ratios = logratios.exp()
            entropy = distribution.entropy().mean()
            clipped = ratios.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.minimum(ratios * advantages[rows], clipped * advantages[rows]).mean()
            value_loss = ((values / scale - returns[rows] / scale) ** 2).mean() / 2
            loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
            optimizer.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            rows_of_metrics.append(
                {
                    "losses/policy_loss": policy_loss.item(),
                    "losses/value_loss": value_loss.item(),
                    "losses/entropy": entropy.item(),
                    "losses/grad_norm": grad_norm.item(),
                    "losses/approx_kl": (ratios - 1 - logratios).mean().item(),
                    "losses/clipfrac": (ratios != clipped).float().mean().item(),
                }
            )
    metrics = {name: np.mean([row[name] for row in rows_of_metrics]) for name in rows_of_metrics[0]}
    return metrics | {"losses/explained_variance": explained_variance}
