# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "gymnasium[box2d]>=1.2.3,<2", "numpy>=1.26", "tyro>=1.0.16", "tensorboard>=2.18"]
# ///
"""PPO for many Gymnasium environments at once, with Discrete or Box actions; runs under torchrun.

    python ppo_vector.py --env-id CartPole-v1

Start at `train`. Papers: arXiv 1707.06347, 1506.02438 (GAE). Added: normalization, torchrun.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import defaultdict, deque
from contextlib import closing, suppress
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
from gymnasium.spaces import Box, Discrete, flatdim, flatten_space
from gymnasium.wrappers import vector
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch import distributed as dist
from torch import nn
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Flags; after a semicolon, values to try."""

    # The run
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:EnvId for your own
    env_kwargs: Annotated[dict, tyro.conf.arg(constructor=json.loads)] = field(default_factory=dict)  # JSON
    exp_name: str = Path(__file__).stem  # names the run folder
    seed: int = 1  # of all random numbers
    total_timesteps: int = 100_000  # with resets, rounded up to whole rollouts
    target_return: float = np.inf  # stop at this mean of 20 episodes
    resume: str | None = None  # checkpoint to continue with its flags
    evaluate: str | None = None  # checkpoint to play with its flags
    device: Literal["cpu", "cuda"] = "cpu"  # cpu suits small networks
    numpy_actor: bool = True  # act in NumPy (faster)

    # The algorithm
    learning_rate: float = 2e-3  # of Adam; 1e-4 (long runs) to 3e-3; Box: 7e-4
    anneal_lr: bool = True  # lower learning_rate and ent_coef linearly to 0
    num_envs: int = 16  # environments of each process; Box: 2
    vectorization_mode: Literal["sync", "async", "vector_entry_point"] | None = None  # None: entry point, else sync
    num_steps: int = 64  # steps of a rollout in each environment; 16 to 2048; Box: 1024
    num_minibatches: int = 4  # minibatches per epoch; Box: 8
    update_epochs: int = 5  # passes over a rollout; 3 to 20; Box: 10
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
    hidden_size: int = 64  # width of hidden layers; Box: 128
    log_std_init: float = -0.5  # log of the first standard deviation of Box actions; -1 to 1

    # The output
    eval_episodes: int = 20  # greedy episodes at the end
    capture_video: bool = False  # film some of them (pip install moviepy)
    checkpoint_interval: int = 50  # rollouts between checkpoints
    log_dir: str = "runs"  # for run folders

    def __post_init__(self):
        names = "num_minibatches update_epochs hidden_size checkpoint_interval learning_rate clip_coef max_grad_norm"
        for name in ("num_envs", *names.split()):
            check(getattr(self, name) > 0, f"--{name.replace('_', '-')} must be > 0")
        check(0 <= self.gamma <= 1 and 0 <= self.gae_lambda <= 1, "--gamma and --gae-lambda must be from 0 to 1")
        check(0 <= self.seed < 2**31 and self.eval_episodes >= 0, "--seed, --eval-episodes must be from 0 to 2**31 - 1")
        check(self.num_steps // 2 * self.num_envs >= self.num_minibatches, "too few --num-steps for --num-minibatches")
        check(isinstance(self.env_kwargs, dict), "--env-kwargs must be a JSON object")


def check(passed, message, error=ValueError):
    if not passed:
        raise error(message)


def average(tensor):
    """Replace a tensor by its mean over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


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
        self.discrete = isinstance(action_space, Discrete)
        self.actor = layer_init(nn.Linear(args.hidden_size, flatdim(action_space)), gain=0.01)
        if not self.discrete:
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
        squares = average((obs.clamp(-limit, limit).double() ** 2).sum(0))
        squares += self.obs_rms.double() ** 2 * self.obs_count
        self.obs_count += average((10.0 * (obs != 0).sum(0)).clamp(max=len(obs)))
        self.obs_rms.copy_((squares / self.obs_count).sqrt())

    def update_return_stats(self, returns, share):  # about the old mean; share: new / all steps
        centered = returns - self.return_mean.item()
        delta, square = average(torch.tensor([centered.mean(), (centered**2).mean()])).tolist()
        variance = (1 - share) * self.return_std.item() ** 2 + share * square - (share * delta) ** 2
        self.return_std.fill_(max(variance, 1e-8) ** 0.5)
        self.return_mean += share * delta

    # The distribution: edit all three together (the last takes tensors, the others NumPy)
    def sample(self, outputs, rng):
        if self.discrete:
            return (outputs + rng.gumbel(size=outputs.shape)).argmax(-1)  # Gumbel-max trick
        return rng.normal(outputs, self.log_std.detach().exp().cpu().numpy())

    def greedy(self, outputs):
        return outputs.argmax(-1) if self.discrete else outputs

    def log_prob_and_entropy(self, outputs, actions):
        if self.discrete:
            logp = outputs.log_softmax(-1).clamp(min=-1e9)  # if you mask by -inf: no NaN
            logprobs = logp.gather(-1, actions[:, None]).squeeze(-1)
            return logprobs, -(logp.exp() * logp).sum(-1)
        policy = torch.distributions.Normal(outputs, self.log_std.exp(), validate_args=False)
        return policy.log_prob(actions).sum(-1), policy.entropy().sum(-1)


class DropInfo(gym.Wrapper):
    """A plain reward and no info: merging infos is slow and may fail."""

    def reset(self, **kwargs):
        obs, _ = self.env.reset(**kwargs)
        return obs, {}

    def step(self, action):
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, np.float64(reward).item(), terminated, truncated, {}


def make_envs(args, num_envs, video_folder=None):
    """Make environments: observations (N, obs_dim), actions (N,) or any real (N, K)."""
    video = {"render_mode": "rgb_array"} if args.capture_video else {}
    kwargs = {"vectorization_mode": args.vectorization_mode} | video | deepcopy(args.env_kwargs)
    before = repr(kwargs)
    wrappers = []  # put yours here (sync/async)
    try:
        try:
            envs = gym.make_vec(args.env_id, num_envs, wrappers=[*wrappers, DropInfo], **kwargs)
        except gym.error.Error:  # vector_entry_point takes none
            envs = gym.make_vec(args.env_id, num_envs, wrappers=wrappers, **kwargs)
    except (gym.error.Error, ImportError, TypeError) as error:
        if isinstance(error, TypeError) and "keyword argument" not in str(error):
            raise
        check(False, f"{args.env_id}: {error} (if in a module: ale_py:ALE/Pong-v5)")
    check(repr(kwargs) == before, f"{args.env_id} changes env_kwargs: copy them")  # shared
    if args.capture_video:  # fail early
        envs.reset()
        works = envs.render_mode in envs.metadata.get("render_modes", ()) and getattr(envs.render()[0], "ndim", 0) == 3
        check(find_spec("moviepy") and works, "--capture-video needs moviepy and rgb_array images")
        envs = vector.RecordVideo(envs, video_folder) if video_folder else envs
    next_step = envs.metadata.get("autoreset_mode") == gym.vector.AutoresetMode.NEXT_STEP
    check(next_step, f"{args.env_id} has no NEXT_STEP autoreset; --vectorization-mode sync may")
    envs = vector.RecordEpisodeStatistics(envs, stats_key="ppo_episode")  # some use "episode"
    # Vector wrappers go here; use --norm-obs, not NormalizeObservation (not saved)
    with suppress(NotImplementedError):
        if not isinstance(envs.single_observation_space, Box):  # flattening casts to Box dtype
            envs = vector.FlattenObservation(envs)
    check(isinstance(envs.observation_space, Box), f"cannot flatten {envs.single_observation_space}: convert it")
    box = flatten_space(envs.single_observation_space)
    envs = vector.TransformObservation(envs, lambda o: o.reshape(len(o), *box.shape), None, box)
    space = envs.single_action_space
    if isinstance(space, Discrete):
        return vector.TransformAction(envs, lambda a: (space.start + a).astype(space.dtype), None, Discrete(space.n))
    fits = isinstance(space, Box) and space.dtype.kind == "f"
    check(fits, f"{args.env_id} has actions {space}, not Discrete, float Box; see ppo_discrete.py")
    # Map [-1, 1] to finite bounds; else shift 0 into them
    low, high = np.float64([space.low, space.high]).reshape(2, -1)
    bounded = high - low < 1e30  # not finfo.max
    scale = np.where(bounded, (high - low) / 2, 1)
    center = np.where(bounded, low + scale, np.clip(0, low, high))

    def to_bounds(action):
        action = np.fmin(np.fmax(center + scale * action, low), high)  # clip; NaN to low
        return action.reshape(num_envs, *space.shape).astype(space.dtype)

    return vector.TransformAction(envs, to_bounds, None, Box(-np.inf, np.inf, low.shape))


@torch.no_grad()
def collect_rollout(envs, agent, obs, done, args, rng=None, num_steps=None):
    """Play (no rng: greedily). Returns rollout (B,), transitions (T, N), obs, done, episodes."""
    agent.eval()
    p = {k: v.cpu().numpy() for k, v in agent.state_dict().items() if args.numpy_actor}
    dtype = np.uint8 if obs.dtype == np.uint8 else np.float32  # images stay bytes
    num_steps = num_steps or args.num_steps
    all_obs = np.empty((num_steps + 1, *obs.shape), dtype)
    steps = []
    episodes = []
    for t in range(num_steps):
        all_obs[t] = obs
        if args.numpy_actor:
            outputs = agent.numpy_actor(all_obs[t], p)  # if it fails: --no-numpy-actor
        else:
            outputs = agent(torch.as_tensor(all_obs[t], device=args.device))[0].cpu().numpy()
        action = agent.sample(outputs, rng) if rng else agent.greedy(outputs)
        obs, reward, terminated, truncated, info = envs.step(action)
        terminated, truncated = np.array([terminated, truncated], bool)
        # valid: False where a step only resets (NEXT_STEP)
        steps.append((outputs, action, np.array(reward), terminated, truncated, ~done))
        done = terminated | truncated
        statistics = info.pop("ppo_episode", None)
        info.pop("_ppo_episode", None)  # envs may reuse info
        episodes += [{key: statistics[key][i] for key in ("r", "l")} for i in np.flatnonzero(done)]
    all_obs[-1] = obs
    outputs, actions, rewards, terminated, truncated, valid = map(np.array, zip(*steps))
    finite = np.isfinite(all_obs).all() and np.isfinite(np.float32(rewards)).all()
    check(finite, f"{args.env_id} gave an observation or reward of NaN, Inf or beyond float32")
    # Recompute in torch: ratios then start at 1
    actions = torch.as_tensor(actions[valid].astype(envs.single_action_space.dtype)).to(args.device)
    torch_outputs, values = agent(torch.as_tensor(all_obs, device=args.device).flatten(0, 1))
    torch_outputs = torch_outputs.unflatten(0, all_obs.shape[:2])[:-1]
    values = values.unflatten(0, all_obs.shape[:2]).cpu().numpy()
    logprobs, entropies = agent.log_prob_and_entropy(torch_outputs[valid], actions)
    check(actions.shape[1:] == envs.single_action_space.shape, "actions must fit their space")
    fits = logprobs.shape == entropies.shape == actions.shape[:1] and values.shape[1:] == done.shape
    check(fits, "logprobs, entropies and values must be (B,)")
    atol = 1e-5 + 1e-3 * np.mean(abs(outputs.max(-1)))  # output scale; max skips -inf
    same = not args.numpy_actor or np.allclose(outputs, torch_outputs.cpu(), rtol=1e-3, atol=atol)
    check(same, "edit numpy_actor like forward or pass --no-numpy-actor; no RNNs")
    rollout = {"obs": torch.as_tensor(all_obs[:-1][valid], device=args.device), "actions": actions}
    rollout |= {"logprobs": logprobs, "rewards": rewards[valid], "valid": valid}
    transitions = {"rewards": np.float64(rewards), "terminated": terminated, "truncated": truncated}
    transitions |= {"values": values[:-1], "next_values": values[1:]}  # true next obs
    return rollout, transitions, obs, done, episodes


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
        epoch_kl = torch.tensor(metrics["approx_kl"][-args.num_minibatches :]).mean()
        if args.target_kl is not None and average(epoch_kl) > args.target_kl:
            break
    if dist.is_initialized():  # local SGD: cheaper than averaging gradients
        parameters = average(nn.utils.parameters_to_vector(agent.parameters()).detach())
        nn.utils.vector_to_parameters(parameters, agent.parameters())
    return {f"losses/{name}": np.mean(values) for name, values in metrics.items()}


def evaluate(agent, envs, args):
    """Mean of greedy episodes in one environment. Raises ValueError if none ends."""
    obs, _ = envs.reset(seed=args.seed + 10**6)  # unlike training
    done = np.zeros(envs.num_envs, bool)
    returns = []
    for _ in range(10**6 // 64):  # at most 1e6 steps
        _, _, obs, done, episodes = collect_rollout(envs, agent, obs, done, args, num_steps=64)
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
    # Set up processes, environments, agent and optimizer
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ["RANK"]) if world_size > 1 else 0
    if world_size > 1:
        dist.init_process_group("gloo")
    if args.device == "cuda" and torch.cuda.is_available():  # one GPU each
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    saved = torch.load(args.resume, map_location="cpu") if args.resume else None
    start_step = saved["step"] if saved else 0
    check(not saved or saved["args"]["env_id"] == args.env_id, f"--resume is not for {args.env_id}")
    check(args.total_timesteps > start_step, f"raise --total-timesteps above {start_step}")
    seed = args.seed + start_step  # a resumed run draws new numbers
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed)  # same weights in all
    torch.set_num_threads(1)  # faster for small networks
    rng = np.random.default_rng([seed, rank])
    envs = make_envs(args, args.num_envs)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(args.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    if saved:
        agent.load_state_dict(saved["agent"])
        check([*saved["agent"]] == [*agent.state_dict()], "--resume needs the old layer order")
        groups = optimizer.state_dict()["param_groups"]  # keep lr of flags
        optimizer.load_state_dict(saved["optimizer"])  # matches by order, sets old lr
        optimizer.load_state_dict(optimizer.state_dict() | {"param_groups": groups})
    obs, _ = envs.reset(seed=int(rng.integers(2**31)))  # else env and rng draw the same numbers
    done = np.zeros(args.num_envs, bool)

    # Set up run folder and TensorBoard
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time():.0f}".replace("/", "_").replace(":", "_")
    folder = Path(args.resume).parent if saved else Path(args.log_dir, name)
    path = folder / "checkpoint.pt"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=bool(saved))
        writer = SummaryWriter(folder, purge_step=start_step + 1, flush_secs=1)  # else exits may hang
        flags = {k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(args).items()}
        writer.file_writer.add_summary(hparams_pb(flags, folder.name))  # add_hparams adds a run
    global_step = start_step
    last_returns = deque(maxlen=20)
    finished = False
    ended = np.zeros_like(done)  # envs with an end; short episodes end first
    start_time = time.perf_counter()
    try:
        while not finished:
            fraction = 1
            if args.anneal_lr:
                fraction = 1 - global_step / args.total_timesteps
                for group in optimizer.param_groups:  # float: no NumPy in checkpoints
                    group["lr"] = float(fraction) * group.setdefault("initial_lr", group["lr"])

            rollout, transitions, obs, done, episodes = collect_rollout(envs, agent, obs, done, args, rng)
            advantages, returns = compute_gae(**transitions, gamma=args.gamma, gae_lambda=args.gae_lambda)
            advantages = advantages[rollout["valid"]]
            returns = returns[rollout["valid"]]
            batch_size = transitions["rewards"].size * world_size
            if args.norm_value:  # first: it scales value_loss
                agent.update_return_stats(returns, batch_size / (global_step + batch_size))
            metrics = ppo_update(agent, optimizer, rollout, advantages, returns, args, rng, fraction)
            if isinstance(getattr(agent, "log_std", None), nn.Parameter):  # std > first * time left
                agent.log_std.data.clamp_(min=args.log_std_init + np.log(1 - global_step / args.total_timesteps))
            if args.norm_obs:  # last: logprobs use old RMS
                agent.update_obs_stats(rollout["obs"])
            global_step += batch_size

            # Log to TensorBoard and terminal
            last_returns.extend(e["r"] for e in episodes)
            mean_return = np.mean(last_returns) if last_returns else np.nan
            ended |= (~rollout["valid"]).any(0)
            solved = ended.all() and len(last_returns) == 20 and mean_return >= args.target_return
            solved = average(torch.tensor(float(solved))) == 1  # in all processes
            finished = solved or global_step >= args.total_timesteps
            if rank > 0:  # no average() below
                continue
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
            if finished or global_step // batch_size % args.checkpoint_interval == 0:
                save_checkpoint(path, args, global_step, agent, optimizer)
        if rank == 0:
            if solved:
                print(f"solved: mean return {mean_return:.1f} over the last 20 episodes at step {global_step}")
            if args.eval_episodes:
                envs.close()  # some allow one env
                envs = make_envs(args, 1, folder / "videos")
                writer.add_scalar("eval/mean_return", evaluate(agent, envs, args), global_step)
    finally:  # also after errors, signals
        if rank == 0:
            save_checkpoint(path, args, global_step, agent, optimizer)
            writer.close()
            print(f"checkpoint: {path}")
        with suppress(BaseException):  # workers may raise
            envs.close(**({"timeout": 1} if hasattr(envs.unwrapped, "step_async") else {}))
        envs.closed = True  # if it failed, __del__ retries
        if world_size > 1:
            dist.destroy_process_group()
            time.sleep(0.1)  # else gloo may abort
    return agent


if __name__ == "__main__":

    def stop(number, _):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # finish saving
        sys.exit(128 + number)

    if hasattr(os, "fork"):  # workers: not `stop`
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    args = tyro.cli(Args)
    checkpoint = args.resume if args.evaluate is None else args.evaluate
    try:
        if checkpoint is not None:
            check(is_zipfile(checkpoint), f"checkpoint {checkpoint} is missing or broken")
            saved = torch.load(checkpoint, map_location="cpu")
            check({"num_envs"} <= saved.get("args", saved).keys() <= vars(args).keys(), "checkpoint of another script")
            args = tyro.cli(Args, default=Args(**saved["args"]))  # given flags win
            args.env_kwargs = saved["args"]["env_kwargs"] | args.env_kwargs
        if args.evaluate is not None:
            random.seed(args.seed)
            np.random.seed(args.seed)
            with closing(make_envs(args, 1, Path(checkpoint).parent / "videos")) as envs:
                agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(args.device)
                agent.load_state_dict(saved["agent"])
                evaluate(agent, envs, args)
        else:
            train(args)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        known = ("check", "load_state_dict", "_lazy_init", "mkdir")  # no traceback
        if frames[-1].name not in known or gym.__path__[0] in str(frames):  # env error
            raise
        sys.exit(f"error: {error}")
