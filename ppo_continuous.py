# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "gymnasium[box2d]>=1.2.3,<2", "numpy>=1.26", "tyro>=1.0.16", "tensorboard>=2.18"]
# ///
"""PPO for one Gymnasium environment with Box actions.

    python ppo_continuous.py --env-id Pendulum-v1

Start at `train`. Papers: arXiv 1707.06347 (PPO), 1506.02438 (GAE). Added: normalization.
"""

import json
import random
import signal
import sys
import time
import traceback
from collections import defaultdict, deque
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal
from zipfile import is_zipfile

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, unflatten
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch import nn
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Flags; after a semicolon, values to try."""

    # The run
    env_id: str = "Pendulum-v1"  # Gymnasium id, or module:EnvId for your own
    env_kwargs: Annotated[dict, tyro.conf.arg(constructor=json.loads)] = field(default_factory=dict)  # JSON
    exp_name: str = Path(__file__).stem  # names the run folder
    seed: int = 1  # of all random numbers
    total_timesteps: int = 100_000  # rounded up to whole rollouts
    target_return: float = np.inf  # stop at this mean of 20 episodes
    resume: str | None = None  # checkpoint to continue with its flags
    evaluate: str | None = None  # checkpoint to play with its flags
    device: Literal["cpu", "cuda"] = "cpu"  # cpu suits small networks
    numpy_actor: bool = True  # act in NumPy (faster)

    # The algorithm
    learning_rate: float = 7e-4  # of Adam; 1e-4 (long runs) to 3e-3
    anneal_lr: bool = True  # lower learning_rate and ent_coef linearly to 0
    num_steps: int = 2048  # steps of a rollout; 512 to 4096
    num_minibatches: int = 8  # minibatches per epoch
    update_epochs: int = 10  # passes over a rollout; 3 to 20
    gamma: float = 0.995  # discount; 0.9 to 0.999 (long horizons)
    gae_lambda: float = 0.97  # 0: one-step TD, 1: Monte Carlo; 0.9 to 1
    norm_adv: bool = True  # normalize advantages per rollout
    norm_value: bool = True  # normalize value targets: large ones swamp the policy
    norm_obs: bool = True  # divide observations by RMS (asinh always on)
    clip_coef: float = 0.2  # clip range of probability ratio; 0.1 to 0.3
    ent_coef: float = 0.0  # initial weight of entropy; 0 to 0.02
    vf_coef: float = 2.0  # weight of value loss; 0.5 to 2
    max_grad_norm: float = 0.5  # clip gradients to this norm
    target_kl: float | None = None  # a larger KL ends the update; 0.01 to 0.05
    hidden_size: int = 128  # width of hidden layers
    log_std_init: float = -0.5  # log of the first standard deviation; -1 to 1

    # The output
    eval_episodes: int = 20  # greedy episodes at the end
    capture_video: bool = False  # film some of them (pip install moviepy)
    checkpoint_interval: int = 50  # rollouts between checkpoints
    log_dir: str = "runs"  # for run folders

    def __post_init__(self):
        names = "num_minibatches update_epochs hidden_size checkpoint_interval learning_rate clip_coef max_grad_norm"
        for name in names.split():
            check(getattr(self, name) > 0, f"--{name.replace('_', '-')} must be > 0")
        check(0 <= self.gamma <= 1 and 0 <= self.gae_lambda <= 1, "--gamma and --gae-lambda must be from 0 to 1")
        check(0 <= self.seed < 2**31 and self.eval_episodes >= 0, "--seed, --eval-episodes must be from 0 to 2**31 - 1")
        check(self.num_steps >= self.num_minibatches, "--num-steps must be >= --num-minibatches")
        check(isinstance(self.env_kwargs, dict), "--env-kwargs must be a JSON object")


def check(passed, message, error=ValueError):
    if not passed:
        raise error(message)


def layer_init(layer, gain=2**0.5):  # Saxe et al. 2014
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class ActorCritic(nn.Module):
    """Policy and value function: two heads on a shared backbone."""

    def __init__(self, obs_space, action_space, args):
        super().__init__()
        first = layer_init(nn.Linear(*obs_space.shape, args.hidden_size))
        second = layer_init(nn.Linear(args.hidden_size, args.hidden_size))
        self.backbone = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.actor = layer_init(nn.Linear(args.hidden_size, *action_space.shape), gain=0.01)
        self.log_std = nn.Parameter(torch.full(action_space.shape, float(args.log_std_init)))  # floor: see train
        self.critic = layer_init(nn.Linear(args.hidden_size, 1), gain=0)  # starts at 0
        self.obs_rms = nn.Buffer(torch.ones(obs_space.shape))  # root mean square
        self.obs_count = nn.Buffer(torch.full(obs_space.shape, 1e-30))  # avoids 0 / 0
        self.return_mean = nn.Buffer(torch.tensor(0.0))
        self.return_std = nn.Buffer(torch.tensor(1.0))

    def forward(self, obs):
        """Map each row of obs (B, dim) to policy outputs (B, K) and unnormalized values (B,)."""
        obs = 10 * torch.asinh(obs / self.obs_rms / 10)  # linear near 0, log above 10
        hidden = self.backbone(obs)
        values = self.critic(hidden).squeeze(-1)
        return self.actor(hidden), values * self.return_std + self.return_mean

    def numpy_actor(self, obs, p):
        """Policy outputs of forward, in NumPy; p: state_dict. Edit the two together."""
        obs = 10 * np.arcsinh(obs / p["obs_rms"] / 10)
        hidden = np.maximum(obs @ p["backbone.0.weight"].T + p["backbone.0.bias"], 0)
        hidden = np.maximum(hidden @ p["backbone.2.weight"].T + p["backbone.2.bias"], 0)
        return hidden @ p["actor.weight"].T + p["actor.bias"]

    def update_obs_stats(self, obs):  # counts at most 9 zeros per nonzero: bounds rare values
        median = obs.where(obs != 0, np.nan).abs().nanmedian(0).values
        limit = 10 * torch.fmax(self.obs_rms, median)  # clips outliers; fmax skips NaN (all 0)
        squares = (obs.clamp(-limit, limit).double() ** 2).sum(0) + self.obs_rms.double() ** 2 * self.obs_count
        self.obs_count += (10 * (obs != 0).sum(0)).clamp(max=len(obs))
        self.obs_rms.copy_((squares / self.obs_count).sqrt())

    def update_return_stats(self, returns, share):  # Chan et al. 1979; share: new / all steps
        delta = returns.mean() - self.return_mean.item()
        variance = (1 - share) * (self.return_std.item() ** 2 + share * delta**2) + share * returns.var()
        self.return_std.fill_(max(variance, 1e-8) ** 0.5)
        self.return_mean += share * delta

    # The distribution: edit all three together (the last takes tensors, the others NumPy)
    def sample(self, outputs, rng):
        return rng.normal(outputs, self.log_std.detach().exp().cpu().numpy())

    def greedy(self, outputs):
        return outputs

    def log_prob_and_entropy(self, outputs, actions):
        policy = torch.distributions.Normal(outputs, self.log_std.exp(), validate_args=False)
        return policy.log_prob(actions).sum(-1), policy.entropy().sum(-1)


def make_env(args, video_folder=None):
    """Make an environment: observations (obs_dim,), actions (K,) scaled to bounds."""
    video = {"render_mode": "rgb_array"} if args.capture_video else {}
    try:
        env = gym.make(args.env_id, **(video | deepcopy(args.env_kwargs)))  # envs may edit it
    except (gym.error.Error, ImportError, TypeError) as error:
        if isinstance(error, TypeError) and "keyword argument" not in str(error):
            raise
        check(False, f"{args.env_id}: {error} (if in a module: ale_py:ALE/Pong-v5)")
    if args.capture_video:  # fail early
        env.reset()
        works = env.render_mode in env.metadata.get("render_modes", ()) and getattr(env.render(), "ndim", 0) == 3
        check(find_spec("moviepy") and works, "--capture-video needs moviepy and rgb_array images")
        env = gym.wrappers.RecordVideo(env, video_folder) if video_folder else env
    # Wrappers that end episodes go here
    env = gym.wrappers.TransformReward(env, lambda r: np.float64(r).item())  # some give arrays
    env = gym.wrappers.RecordEpisodeStatistics(env, stats_key="ppo_episode")  # some use "episode"
    # Others go here; use --norm-obs, not NormalizeObservation (not saved)
    with suppress(NotImplementedError):
        if not isinstance(env.observation_space, Box):  # flattening casts to Box dtype
            env = gym.wrappers.FlattenObservation(env)
    check(isinstance(env.observation_space, Box), f"cannot flatten {env.observation_space}: convert it")
    env = gym.wrappers.ReshapeObservation(env, (env.observation_space.low.size,))
    space = env.action_space
    fits = isinstance(space, Box) and space.dtype.kind == "f"
    check(fits, f"{args.env_id} has actions {space}, not a float Box; for Discrete use ppo_discrete.py")
    # Map [-1, 1] to finite bounds; else shift 0 into them
    low, high = np.float64([space.low, space.high]).reshape(2, -1)
    bounded = high - low < 1e30  # not finfo.max
    scale = np.where(bounded, (high - low) / 2, 1)
    center = np.where(bounded, low + scale, np.clip(0, low, high))

    def to_bounds(action):
        return unflatten(space, np.fmin(np.fmax(center + scale * action, low), high))  # clip; NaN to low

    return gym.wrappers.TransformAction(env, to_bounds, Box(-np.inf, np.inf, low.shape))


@torch.no_grad()
def collect_rollout(env, agent, obs, args, rng=None, num_steps=None):
    """Play (no rng: greedily). Returns ppo_update's dict, compute_gae's dict, obs, episodes."""
    agent.eval()
    p = {k: v.cpu().numpy() for k, v in agent.state_dict().items() if args.numpy_actor}
    steps = []
    episodes = []
    for _ in range(num_steps or args.num_steps):
        obs = np.array(obs, np.float32)  # copy: env may reuse it
        if args.numpy_actor:
            outputs = agent.numpy_actor(obs, p)  # if it fails: --no-numpy-actor
        else:
            outputs = agent(torch.as_tensor(obs[None], device=args.device))[0].cpu().numpy()[0]
        action = agent.sample(outputs, rng) if rng else agent.greedy(outputs)
        next_obs, reward, terminated, truncated, info = env.step(action)
        steps.append((obs, outputs, action, reward, np.array(next_obs, np.float32), bool(terminated), bool(truncated)))
        obs = next_obs
        if terminated or truncated:
            episodes.append(info.pop("ppo_episode"))  # envs may reuse info
            obs, _ = env.reset()
    all_obs, outputs, actions, rewards, next_obs, terminated, truncated = map(np.array, zip(*steps))
    finite = all(np.isfinite(np.float32(x)).all() for x in (all_obs, next_obs, rewards))
    check(finite, f"{args.env_id} gave an observation or reward of NaN, Inf or beyond float32")
    # Recompute in torch: ratios then start at 1
    all_obs = torch.as_tensor(all_obs, device=args.device)
    actions = torch.as_tensor(actions.astype(env.action_space.dtype), device=args.device)
    torch_outputs, values = agent(all_obs)
    logprobs, entropies = agent.log_prob_and_entropy(torch_outputs, actions)
    _, next_values = agent(torch.as_tensor(next_obs, device=args.device))
    check(actions.shape[1:] == env.action_space.shape, "actions must fit their space")
    check(logprobs.shape == entropies.shape == values.shape == rewards.shape, "logprobs, entropies, values: need (B,)")
    atol = 1e-5 + 1e-3 * np.mean(abs(outputs.max(-1)))  # output scale; max skips -inf
    same = not args.numpy_actor or np.allclose(outputs, torch_outputs.cpu(), rtol=1e-3, atol=atol)
    check(same, "edit numpy_actor like forward or pass --no-numpy-actor; no RNNs")
    rollout = {"obs": all_obs, "actions": actions, "logprobs": logprobs, "rewards": rewards}
    transitions = {"rewards": np.float64(rewards), "terminated": terminated, "truncated": truncated}
    transitions |= {"values": values.cpu().numpy(), "next_values": next_values.cpu().numpy()}
    return rollout, transitions, obs, episodes


def compute_gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """Advantages and returns, shaped like rewards (T, ...) (Schulman et al. 2016, equation 16)."""
    advantages = rewards + gamma * (1 - terminated) * next_values - values  # deltas
    decay = gamma * gae_lambda * (1 - terminated) * (1 - truncated)  # cut at episode ends
    for t in reversed(range(len(rewards) - 1)):
        advantages[t] += decay[t] * advantages[t + 1]
    return advantages, advantages + values


def ppo_update(agent, optimizer, rollout, advantages, returns, args, rng, fraction=1):
    """Train by Schulman et al. 2017, equations 7, 9; fraction scales ent_coef. Returns metrics."""
    agent.train()
    metrics = defaultdict(list, explained_variance=[1 - advantages.var() / (returns.var() + 1e-12)])
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    advantages, returns = torch.as_tensor(np.float32([advantages, returns]), device=args.device)
    hint = "NaN or Inf in the loss: try --norm-obs or lower --learning-rate, check distribution "
    hint += f"(largest observation, reward: {rollout['obs'].abs().max():.2g}, {abs(rollout['rewards']).max():.2g})"
    for _ in range(args.update_epochs):
        for rows in np.array_split(rng.permutation(len(returns)), args.num_minibatches):
            outputs, values = agent(rollout["obs"][rows])
            logprobs, entropies = agent.log_prob_and_entropy(outputs, rollout["actions"][rows])
            # Policy loss
            logratio = logprobs - rollout["logprobs"][rows]
            ratio = logratio.exp()
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.min(ratio * advantages[rows], clipped * advantages[rows]).mean()
            # Value loss, in units of return_std
            value_loss = 0.5 * ((values - returns[rows]) / agent.return_std).square().mean()
            # Gradient step
            loss = policy_loss + args.vf_coef * value_loss - fraction * args.ent_coef * entropies.mean()
            optimizer.zero_grad()
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            check((loss + grad_norm).isfinite(), hint, FloatingPointError)
            optimizer.step()
            metrics["policy_loss"].append(policy_loss.item())
            metrics["value_loss"].append(value_loss.item())
            metrics["entropy"].append(entropies.mean().item())
            metrics["grad_norm"].append(grad_norm.item())
            metrics["approx_kl"].append((ratio - 1 - logratio).mean().item())
            metrics["clipfrac"].append((ratio != clipped).float().mean().item())
        epoch_kl = np.mean(metrics["approx_kl"][-args.num_minibatches :])
        if args.target_kl is not None and epoch_kl > args.target_kl:
            break
    return {f"losses/{name}": np.mean(values) for name, values in metrics.items()}


def evaluate(agent, env, args):
    """Mean of greedy episodes. Resets env: mid-training, pass another. ValueError if none ends."""
    obs, _ = env.reset(seed=args.seed + 10**6)  # unlike training
    returns = []
    for _ in range(10**6 // 64):  # at most 1e6 steps
        _, _, obs, episodes = collect_rollout(env, agent, obs, args, num_steps=64)
        returns += [e["r"] for e in episodes[: args.eval_episodes - len(returns)]]
        if len(returns) == args.eval_episodes:
            break
    check(returns, "no greedy episode ended: set max_episode_steps or raise --eval-episodes")
    print(f"evaluation: mean return {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes")
    return np.mean(returns)


def save_checkpoint(path, args, global_step, agent, optimizer):
    checkpoint = {"args": vars(args) | {"resume": None}, "step": global_step}
    checkpoint |= {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, f"{path}.tmp")
    Path(f"{path}.tmp").replace(path)  # a kill leaves the old file


def train(args):
    """Train by PPO (Schulman et al. 2017, algorithm 1), then evaluate. Returns the agent."""
    # Set up environment, agent and optimizer
    saved = torch.load(args.resume, map_location="cpu") if args.resume else None
    start_step = saved["step"] if saved else 0
    check(not saved or saved["args"]["env_id"] == args.env_id, f"--resume is not for {args.env_id}")
    check(args.total_timesteps > start_step, f"raise --total-timesteps above {start_step}")
    seed = args.seed + start_step  # a resumed run draws new numbers
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # faster for small networks
    rng = np.random.default_rng(seed)
    env = make_env(args)
    agent = ActorCritic(env.observation_space, env.action_space, args).to(args.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    if saved:
        agent.load_state_dict(saved["agent"])
        check([*saved["agent"]] == [*agent.state_dict()], "--resume needs the old layer order")
        groups = optimizer.state_dict()["param_groups"]  # keep lr of flags
        optimizer.load_state_dict(saved["optimizer"])  # matches by order, sets old lr
        optimizer.load_state_dict(optimizer.state_dict() | {"param_groups": groups})
    obs, _ = env.reset(seed=int(rng.integers(2**31)))  # else env and rng draw the same numbers

    # Set up run folder and TensorBoard
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time():.0f}".replace("/", "_").replace(":", "_")
    folder = Path(args.resume).parent if saved else Path(args.log_dir, name)
    path = folder / "checkpoint.pt"
    folder.mkdir(parents=True, exist_ok=bool(saved))
    writer = SummaryWriter(folder, purge_step=start_step + 1, flush_secs=1)  # else exits may hang
    flags = {k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(args).items()}
    writer.file_writer.add_summary(hparams_pb(flags, folder.name))  # add_hparams adds a run
    global_step = start_step
    last_returns = deque(maxlen=20)
    finished = False
    start_time = time.perf_counter()
    try:
        while not finished:
            fraction = 1
            if args.anneal_lr:
                fraction = 1 - global_step / args.total_timesteps
                for group in optimizer.param_groups:  # float: no NumPy in checkpoints
                    group["lr"] = float(fraction) * group.setdefault("initial_lr", group["lr"])

            rollout, transitions, obs, episodes = collect_rollout(env, agent, obs, args, rng)
            advantages, returns = compute_gae(**transitions, gamma=args.gamma, gae_lambda=args.gae_lambda)
            if args.norm_value:  # first: it scales value_loss
                agent.update_return_stats(returns, len(returns) / (global_step + len(returns)))
            metrics = ppo_update(agent, optimizer, rollout, advantages, returns, args, rng, fraction)
            if isinstance(getattr(agent, "log_std", None), nn.Parameter):  # std > first * time left
                agent.log_std.data.clamp_(min=args.log_std_init + np.log(1 - global_step / args.total_timesteps))
            if args.norm_obs:  # last: logprobs use old RMS
                agent.update_obs_stats(rollout["obs"])
            global_step += len(returns)

            # Log to TensorBoard and terminal
            last_returns.extend(e["r"] for e in episodes)
            mean_return = np.mean(last_returns) if last_returns else np.nan
            solved = len(last_returns) == 20 and mean_return >= args.target_return
            finished = solved or global_step >= args.total_timesteps
            sps = (global_step - start_step) / (time.perf_counter() - start_time)
            metrics |= {"charts/learning_rate": optimizer.param_groups[0]["lr"], "charts/SPS": sps}
            if episodes:
                metrics["charts/episodic_return"] = np.mean([e["r"] for e in episodes])
                metrics["charts/episodic_length"] = np.mean([e["l"] for e in episodes])
                metrics["charts/episodic_return_20"] = mean_return
            for tag, value in metrics.items():
                writer.add_scalar(tag, value, global_step)
            writer.flush()  # no gap after a kill
            seconds_left = max(args.total_timesteps - global_step, 0) / sps
            status = f"{global_step / args.total_timesteps:4.0%}  step {global_step}  mean return "
            status += f"{mean_return:.1f}  {sps:.0f} steps/s  {seconds_left:.0f} s left"
            print(f"{status:<79}", end="\n" if finished or not sys.stdout.isatty() else "\r", flush=True)
            if finished or global_step // args.num_steps % args.checkpoint_interval == 0:
                save_checkpoint(path, args, global_step, agent, optimizer)
        if solved:
            print(f"solved: mean return {mean_return:.1f} over the last 20 episodes at step {global_step}")
        if args.eval_episodes:
            if args.capture_video:
                env.close()  # some allow one env
                env = make_env(args, folder / "videos")
            writer.add_scalar("eval/mean_return", evaluate(agent, env, args), global_step)
    finally:  # also after errors, signals
        save_checkpoint(path, args, global_step, agent, optimizer)
        writer.close()
        print(f"checkpoint: {path}")
        env.close()
    return agent


if __name__ == "__main__":

    def stop(number, _):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # finish saving
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    args = tyro.cli(Args)
    checkpoint = args.resume if args.evaluate is None else args.evaluate
    try:
        if checkpoint is not None:
            check(is_zipfile(checkpoint), f"checkpoint {checkpoint} is missing or broken")
            saved = torch.load(checkpoint, map_location="cpu")
            check(saved.get("args", saved).keys() <= vars(args).keys(), "checkpoint of another script")
            args = tyro.cli(Args, default=Args(**saved["args"]))  # given flags win
            args.env_kwargs = saved["args"]["env_kwargs"] | args.env_kwargs
        if args.evaluate is not None:
            random.seed(args.seed)
            np.random.seed(args.seed)
            with make_env(args, Path(checkpoint).parent / "videos") as env:
                agent = ActorCritic(env.observation_space, env.action_space, args).to(args.device)
                agent.load_state_dict(saved["agent"])
                evaluate(agent, env, args)
        else:
            train(args)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        known = ("check", "load_state_dict", "_lazy_init", "mkdir")  # no traceback
        if frames[-1].name not in known or gym.__path__[0] in str(frames):  # env error
            raise
        sys.exit(f"error: {error}")
