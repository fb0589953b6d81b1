# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.13,<2.14", "gymnasium[box2d]>=1.2.3,<1.5", "numpy>=2", "tyro>=1.0.17", "tensorboard>=2.18"]
# ///
"""PPO for one Gymnasium environment with Discrete, MultiDiscrete or MultiBinary actions.

    python ppo_discrete.py --env-id CartPole-v1

Papers: PPO (Schulman et al. 2017, arXiv 1707.06347) and GAE (Schulman et al. 2016, arXiv 1506.02438). Departures:
normalized value targets, truncation bootstrapped from the last observation, advantages normalized over the rollout.
"""

import copy
import signal
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Numbers after a semicolon are the range worth trying."""

    env_id: str = "CartPole-v1"  # Gymnasium id, or module:EnvId for your own environment
    exp_name: str = Path(__file__).stem  # part of the run folder's name
    seed: int = 1  # seed of weights, environment, actions and minibatches
    total_timesteps: int = 100_000  # environment steps, rounded up to whole rollouts
    learning_rate: float = 1.5e-3  # of Adam; 1e-4 to 3e-3
    anneal_lr: bool = True  # lower the learning rate linearly to 0 over the run
    num_steps: int = 1024  # steps of a rollout; 512 to 4096
    num_minibatches: int = 4  # minibatches of an epoch
    update_epochs: int = 10  # passes over each rollout; 3 to 20
    gamma: float = 0.995  # discount; 0.9 for short horizons to 0.999 for long ones
    gae_lambda: float = 0.97  # 0 is one-step TD, 1 is Monte Carlo; 0.9 to 1
    norm_adv: bool = True  # normalize advantages, once a rollout
    norm_value: bool = True  # normalize value targets by running statistics: large ones swamp the policy's gradient
    norm_obs: bool = False  # normalize observations by running statistics, from the second rollout on
    clip_coef: float = 0.2  # clip range of the probability ratio; 0.1 to 0.3
    ent_coef: float = 0.01  # weight of the entropy bonus; 0 to 0.02
    vf_coef: float = 1.0  # weight of the value loss; 0.5 to 2
    max_grad_norm: float = 0.5  # longer gradients are scaled down to this norm
    target_kl: float | None = 0.02  # end an update after an epoch whose mean KL exceeds this; 0.01 to 0.05
    hidden_size: int = 128  # width of the two hidden layers
    shared_backbone: bool = True  # hidden layers shared by policy and values, in place of two networks
    target_return: float | None = None  # stop once the mean of the last 20 episode returns reaches this
    eval_episodes: int = 20  # greedy episodes at the end
    capture_video: bool = False  # record some of the greedy episodes (pip install moviepy)
    checkpoint_interval: int = 50  # rollouts between checkpoints
    resume: str | None = None  # checkpoint to continue from, in its folder; flags default to the checkpoint's
    evaluate: str | None = None  # checkpoint to evaluate without training; flags default to the checkpoint's
    log_dir: str = "runs"  # parent of the run folders
    device: Literal["cpu", "cuda"] = "cpu"  # cpu is fastest for networks this small

    def __post_init__(self):
        vars(self).update({k: v.item() for k, v in vars(self).items() if hasattr(v, "item")})  # no NumPy in checkpoints
        counts = ("total_timesteps", "num_steps", "num_minibatches", "update_epochs", "hidden_size")
        for name in (*counts, "checkpoint_interval", "learning_rate", "clip_coef", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be greater than 0")
        if not (0 <= self.gamma <= 1 and 0 <= self.gae_lambda <= 1 and min(self.seed, self.eval_episodes) >= 0):
            raise ValueError("--gamma and --gae-lambda must be from 0 to 1, --seed and --eval-episodes at least 0")
        checkpoint = self.evaluate or self.resume  # torch.load does not compare checksums, testzip does
        if checkpoint and (not zipfile.is_zipfile(checkpoint) or zipfile.ZipFile(checkpoint).testzip()):
            raise ValueError(f"no such file, or a damaged one: {checkpoint}")


class RunningMeanStd(nn.Module):
    """Mean and standard deviation of all rows seen so far; 0 and std before the first."""

    def __init__(self, shape, std=1.0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.full(shape, std))
        self.register_buffer("count", torch.zeros(()))

    def update(self, rows):
        """Merge in the moments of rows (n, *shape) (Chan, Golub & LeVeque 1979)."""
        rows = torch.as_tensor(rows, device=self.mean.device)
        delta, weight = rows.mean(0) - self.mean, len(rows) / (self.count + len(rows))
        variance = (1 - weight) * self.std**2 + weight * rows.var(0, correction=0) + weight * (1 - weight) * delta**2
        self.std.copy_(variance.clamp(min=1e-8).sqrt())
        self.mean += weight * delta
        self.count += len(rows)


class ActorCritic(nn.Module):
    """Policy and value function: two networks, or two heads on a shared backbone."""

    def __init__(self, obs_space, action_space, args):
        super().__init__()
        width = args.hidden_size
        self.obs_stats = RunningMeanStd(obs_space.shape) if args.norm_obs else None
        # Std 0 makes all values 0 until the first update: random ones would distort the statistics of small rewards
        self.return_stats = RunningMeanStd((), std=0.0 if args.norm_value else 1.0)
        self.backbone = nn.Sequential(nn.Linear(*obs_space.shape, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.critic_backbone = None if args.shared_backbone else copy.deepcopy(self.backbone)
        self.actor = nn.Linear(width, action_space.n)
        self.critic = nn.Linear(width, 1)
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.orthogonal_(layer.weight, {self.actor: 0.01, self.critic: 1.0}.get(layer, 2**0.5))
            nn.init.zeros_(layer.bias)

    def forward(self, obs):
        """Logits (B, n) and values (B,) in units of the return, of raw observations (B, obs_dim)."""
        if self.obs_stats:
            obs = ((obs - self.obs_stats.mean) / self.obs_stats.std).clamp(-10, 10)
        hidden = self.backbone(obs)
        values = self.critic(self.critic_backbone(obs) if self.critic_backbone else hidden).squeeze(-1)
        return self.actor(hidden), values * self.return_stats.std + self.return_stats.mean

    def numpy_actor(self):
        """The actor of `forward` in NumPy, where an action takes 6 us instead of 30. Change both, or act in torch:
        return lambda obs: self(self.return_stats.mean.new_tensor(obs)[None])[0][0].detach().cpu().numpy()"""
        p = {name: value.cpu().numpy() for name, value in self.state_dict().items()}

        def actor(obs):
            if self.obs_stats:
                obs = np.clip((obs - p["obs_stats.mean"]) / p["obs_stats.std"], -10, 10)
            hidden = np.maximum(obs @ p["backbone.0.weight"].T + p["backbone.0.bias"], 0)
            hidden = np.maximum(hidden @ p["backbone.2.weight"].T + p["backbone.2.bias"], 0)
            return hidden @ p["actor.weight"].T + p["actor.bias"]

        return actor

    def evaluate_actions(self, obs, actions):
        """Log-probabilities (B,) of actions, mean entropy and values (B,)."""
        logits, values = self(obs)
        logp = logits.log_softmax(-1)
        return logp.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1).mean(), values


def make_env(env_id, video=None):
    """Make an environment with flat observations and actions for ActorCritic, or exit with a one-line error."""
    try:
        env = gym.wrappers.RecordVideo(gym.make(env_id, render_mode="rgb_array"), video) if video else gym.make(env_id)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {env_id}: {error}") from error
    env = gym.wrappers.RecordEpisodeStatistics(env)
    # Add your own wrappers here; those that end episodes go one line up. To normalize observations, use --norm-obs.
    env = gym.wrappers.FlattenObservation(env)
    space = env.action_space
    if not isinstance(env.observation_space, Box) or not isinstance(space, (Discrete, MultiDiscrete, MultiBinary)):
        raise SystemExit(f"error: {env_id}: discrete actions, fixed-size observations only (Box: ppo_continuous.py)")
    # Every combination of choices becomes one Discrete action, which is a row of table
    sizes = np.full(space.shape, space.n if isinstance(space, Discrete) else getattr(space, "nvec", 2))
    if sizes.prod(dtype=float) > 10_000:
        raise SystemExit(f"error: {env_id} has more than 10,000 combinations of actions")
    table = np.array([*np.ndindex(*sizes.ravel())], space.dtype).reshape(-1, *space.shape) + getattr(space, "start", 0)
    return gym.wrappers.TransformAction(env, lambda action: table[action].copy(), Discrete(len(table)))


def collect_rollout(env, agent, obs, args, rng):
    """Play from obs. Returns the rollout, arguments for compute_gae, the next obs, (return, length) of each episode."""
    actor, outputs, actions, episodes = agent.numpy_actor(), [], [], []
    raw_obs, next_obs = np.empty((2, args.num_steps, *obs.shape), np.float32)
    rewards, (terminated, truncated) = np.empty(args.num_steps), np.empty((2, args.num_steps), bool)
    noise = rng.gumbel(size=(args.num_steps, env.action_space.n))  # Gumbel-max: argmax(logits + noise) is a sample
    for t in range(args.num_steps):
        raw_obs[t] = obs
        outputs.append(actor(raw_obs[t]))
        actions.append((outputs[t] + noise[t]).argmax())
        obs, rewards[t], terminated[t], truncated[t], info = env.step(actions[t])
        next_obs[t] = obs  # when an episode ends, this is its last observation, not the first of the next
        if terminated[t] or truncated[t]:
            episodes.append((info["episode"]["r"], info["episode"]["l"]))
            obs, _ = env.reset()
    if not all(np.isfinite(x).all() for x in (raw_obs, next_obs, rewards)):
        raise SystemExit("error: the environment gave an observation or a reward that is NaN or Inf")
    # Values and log-probabilities of the whole rollout in one pass: 1 us a step instead of 100
    obs_batch = torch.as_tensor(raw_obs, device=args.device)
    action_batch = torch.as_tensor(np.array(actions), device=args.device)
    with torch.no_grad():
        logprobs, _, _ = agent.evaluate_actions(obs_batch, action_batch)
        expected, values = agent(obs_batch)
        _, next_values = agent(torch.as_tensor(next_obs, device=args.device))
    same = np.allclose(outputs, expected.cpu(), atol=1e-3 * min(np.abs(outputs).max(), 10))  # 10: a mask may be -1e9
    assert same, "ActorCritic.numpy_actor and forward differ: change both, or act in torch as numpy_actor describes"
    transitions = (rewards, values.cpu().numpy(), next_values.cpu().numpy(), terminated, truncated)
    return {"obs": obs_batch, "actions": action_batch, "logprobs": logprobs}, transitions, obs, episodes


def compute_gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """Advantages and returns, each of the shape (T, ...) of the rewards (Schulman et al. 2016, equation 16)."""
    deltas = rewards + gamma * ~terminated * next_values - values  # only termination makes the next value 0
    decay = gamma * gae_lambda * ~(terminated | truncated)
    advantages, next_advantage = np.empty_like(deltas), 0.0
    for t in reversed(range(len(deltas))):
        advantages[t] = next_advantage = deltas[t] + decay[t] * next_advantage
    return advantages, advantages + values


def ppo_update(agent, optimizer, rollout, advantages, returns, args, rng):
    """Train on a rollout by the loss of Schulman et al. 2017, equations 7 and 9. Returns metrics over all epochs."""
    metrics = {"losses/explained_variance": 1 - advantages.var() / (returns.var() + 1e-12)}  # advantages = returns - V
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    advantages, returns = (torch.as_tensor(x, dtype=torch.float32, device=args.device) for x in (advantages, returns))
    losses, logratios = [], []
    for _ in range(args.update_epochs):
        for rows in torch.tensor(rng.permutation(len(returns))).tensor_split(min(args.num_minibatches, len(returns))):
            logprobs, entropy, values = agent.evaluate_actions(rollout["obs"][rows], rollout["actions"][rows])
            # Policy loss
            logratio = logprobs - rollout["logprobs"][rows]
            ratio = logratio.exp()
            clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.min(ratio * advantages[rows], clipped_ratio * advantages[rows]).mean()
            # Value loss, in standard deviations of the return
            value_loss = 0.5 * ((values - returns[rows]) / agent.return_stats.std).square().mean()
            loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy

            optimizer.zero_grad()
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            losses.append(torch.stack([policy_loss, value_loss, entropy, grad_norm]).detach())
            logratios.append(logratio.detach())
        logratio = torch.cat(logratios)[-len(returns) :]  # of this epoch
        if args.target_kl is not None and (logratio.expm1() - logratio).mean() > args.target_kl:
            break
    logratio = torch.cat(logratios)
    names = ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm")
    metrics["losses/approx_kl"] = (logratio.expm1() - logratio).mean().item()  # (r - 1) - log r
    metrics["losses/clipfrac"] = (logratio.expm1().abs() > args.clip_coef).float().mean().item()
    return metrics | dict(zip(names, torch.stack(losses).mean(0).tolist(), strict=True))


def evaluate(agent, args, folder):
    """Play greedy episodes, statistics frozen. Prints and returns their mean return."""
    env = make_env(args.env_id, folder / "videos" if args.capture_video else None)
    returns = []
    obs, _ = env.reset(seed=args.seed + 10**6)
    while len(returns) < max(args.eval_episodes, 1):  # the flag of a checkpoint may be 0
        outputs, _ = agent(torch.as_tensor(obs, dtype=torch.float32, device=args.device)[None])
        obs, _, terminated, truncated, info = env.step(outputs[0].argmax().item())
        if terminated or truncated:
            returns.append(info["episode"]["r"])
            obs, _ = env.reset()
    env.close()
    print(f"evaluation: mean return {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes")
    return np.mean(returns)


def save_checkpoint(path, args, global_step, agent, optimizer):
    """Write the whole file or nothing: a run that is killed here leaves the previous checkpoint."""
    state = {"args": asdict(args) | {"resume": None}, "step": global_step}
    torch.save(state | {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}, f"{path}.tmp")
    Path(f"{path}.tmp").replace(path)


def train(args):
    """Train by PPO (Schulman et al. 2017, algorithm 1), then evaluate. Returns the agent."""
    # Set up the environment, the agent and the optimizer
    saved = torch.load(args.evaluate or args.resume, map_location="cpu") if args.evaluate or args.resume else None
    start_step = global_step = saved["step"] if saved else 0
    if start_step >= args.total_timesteps and not args.evaluate:
        raise SystemExit(f"error: this run is finished: to go on, raise --total-timesteps above {start_step}")
    seed = args.seed + start_step  # so that a resumed run does not repeat its random numbers
    np.random.seed(seed)  # for environments that use it
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads slow down networks this small
    rng = np.random.default_rng(seed)
    if args.capture_video:  # fail now, not after the training
        make_env(args.env_id, Path(tempfile.mkdtemp(), "videos")).close()
    env = make_env(args.env_id)
    agent = ActorCritic(env.observation_space, env.action_space, args).to(args.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    if saved:  # of the optimizer only the moments: the learning rates are those of the flags
        agent.load_state_dict(saved["agent"])
        optimizer.load_state_dict(saved["optimizer"] | {"param_groups": optimizer.state_dict()["param_groups"]})
    if args.evaluate:
        env.close()
        evaluate(agent, args, Path(args.evaluate).parent)
        return agent
    schedule = LambdaLR(optimizer, lambda _epoch: 1 - global_step / args.total_timesteps if args.anneal_lr else 1)

    # Set up the run folder and TensorBoard
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time():.0f}".replace("/", "_").replace(":", "_")
    folder = Path(args.resume).parent if args.resume else Path(args.log_dir, name)
    folder.mkdir(parents=True, exist_ok=bool(args.resume))
    writer = SummaryWriter(folder, purge_step=start_step + 1 if args.resume else None)
    flags = {k: "None" if value is None else value for k, value in asdict(args).items()}
    for summary in torch.utils.tensorboard.summary.hparams(flags, {"eval/mean_return": 0}):
        writer.file_writer.add_summary(summary)

    last_returns, solved, start_time = [], False, time.perf_counter()
    obs, _ = env.reset(seed=int(rng.integers(2**31)))  # not seed: env and rng would draw the same numbers
    try:
        while global_step < args.total_timesteps and not solved:
            rollout, transitions, obs, episodes = collect_rollout(env, agent, obs, args, rng)
            advantages, returns = compute_gae(*transitions, args.gamma, args.gae_lambda)
            if args.norm_value:
                agent.return_stats.update(returns)
            metrics = ppo_update(agent, optimizer, rollout, advantages, returns, args, rng)
            if args.norm_obs:
                agent.obs_stats.update(rollout["obs"])  # after the update: the policy acted by the old ones
            global_step += args.num_steps
            metrics["charts/learning_rate"] = schedule.get_last_lr()[0]
            schedule.step()  # its lambda reads global_step

            # Log to TensorBoard and the terminal
            last_returns = [*last_returns, *(episode_return for episode_return, _ in episodes)][-20:]
            mean_return = np.mean(last_returns) if last_returns else np.nan
            solved = args.target_return is not None and len(last_returns) == 20 and mean_return >= args.target_return
            if episodes:
                metrics["charts/episodic_return"], metrics["charts/episodic_length"] = np.mean(episodes, axis=0)
                metrics["charts/episodic_return_20"] = mean_return
            metrics["charts/SPS"] = sps = (global_step - start_step) / (time.perf_counter() - start_time)
            for name, value in metrics.items():
                writer.add_scalar(name, value, global_step)
            writer.flush()  # now, so that the writer's thread does not slow down the next rollout
            status = f"{global_step / args.total_timesteps:4.0%}  step {global_step}  mean return {mean_return:.1f}"
            status += f"  {sps:.0f} steps/s  {max(args.total_timesteps - global_step, 0) / sps:.0f} s left"
            print(f"{status:<79}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
            if global_step // args.num_steps % args.checkpoint_interval == 0:
                save_checkpoint(folder / "checkpoint.pt", args, global_step, agent, optimizer)

        env.close()  # before evaluate makes its own: some environments allow only one at a time
        print(end="\n" if sys.stdout.isatty() else "")  # end the status line
        if solved:
            print(f"solved: mean return {mean_return:.1f} over the last 20 episodes at step {global_step}")
        if args.eval_episodes:
            writer.add_scalar("eval/mean_return", evaluate(agent, args, folder), global_step)
    finally:  # also after an error, Ctrl-C or SIGTERM
        save_checkpoint(folder / "checkpoint.pt", args, global_step, agent, optimizer)
        writer.close()
        print(f"checkpoint: {folder / 'checkpoint.pt'}")
    return agent


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # train saves, and no traceback
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = tyro.cli(Args)
    if checkpoint := args.evaluate or args.resume:  # flags default to the checkpoint's
        args = tyro.cli(Args, default=Args(**torch.load(checkpoint, map_location="cpu")["args"]))
    train(args)
