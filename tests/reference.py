"""Second implementations, by torch.distributions and plain loops, to hold the scripts against."""

import numpy as np
import torch
from gymnasium.spaces import Box
from torch.distributions import Categorical, Normal


def distributions(agent, action_space, obs):
    """One torch distribution for each component of the action, and the normalised values."""
    outputs, values = agent(obs)
    if isinstance(action_space, Box):
        stds = agent.log_std.exp()
        return [Normal(outputs[:, k], stds[k]) for k in range(len(stds))], values
    return [Categorical(logits=outputs[:, k, :n]) for k, n in enumerate(action_space.nvec)], values


def evaluate_actions(agent, action_space, obs, actions):
    """Log-probabilities of actions, entropies and normalised values."""
    components, values = distributions(agent, action_space, obs)
    logprobs = sum(component.log_prob(actions[:, k]) for k, component in enumerate(components))
    return logprobs, sum(component.entropy() for component in components), values


def gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """Advantages (T,) by the definition: a sum of discounted temporal differences to the end of the episode."""
    advantages = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for i in range(t, len(rewards)):
            target = rewards[i] if terminated[i] else rewards[i] + gamma * next_values[i]
            total += weight * (target - values[i])
            weight *= gamma * gae_lambda
            if terminated[i] or truncated[i]:
                break
        advantages.append(total)
    return np.array(advantages)


def ppo_update(agent, action_space, obs, actions, values, logprobs, advantages, returns, args, rng):
    """Train the agent by the textbook loss and an Adam of its own; returns the metrics."""
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    advantages = torch.as_tensor(advantages, dtype=torch.float32)
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    targets = (returns - agent.return_stats.mean.item()) / agent.return_stats.var.item() ** 0.5
    targets, rows_of_metrics = torch.as_tensor(targets, dtype=torch.float32), []
    for _ in range(args.update_epochs):
        for rows in np.array_split(rng.permutation(len(returns)), args.num_minibatches):
            new_logprobs, entropies, new_values = evaluate_actions(agent, action_space, obs[rows], actions[rows])
            logratios = new_logprobs - logprobs[rows]
            ratios = logratios.exp()
            clipped = ratios.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.minimum(ratios * advantages[rows], clipped * advantages[rows]).mean()
            value_loss = ((new_values - targets[rows]) ** 2).mean() / 2
            loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropies.mean()
            optimizer.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            rows_of_metrics.append(
                {
                    "losses/policy_loss": policy_loss.item(),
                    "losses/value_loss": value_loss.item(),
                    "losses/entropy": entropies.mean().item(),
                    "losses/grad_norm": grad_norm.item(),
                    "losses/old_approx_kl": -logratios.mean().item(),
                    "losses/approx_kl": (ratios - 1 - logratios).mean().item(),
                    "losses/clipfrac": (ratios != clipped).float().mean().item(),
                }
            )
    metrics = {name: np.mean([row[name] for row in rows_of_metrics]) for name in rows_of_metrics[0]}
    return metrics | {"losses/explained_variance": 1 - (returns - values).var() / returns.var()}
