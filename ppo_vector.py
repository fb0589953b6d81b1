# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.13,<2.14", "gymnasium[box2d]>=1.2.3,<1.5", "numpy>=2", "tyro>=1.0.17", "tensorboard>=2.18"]
# ///
"""PPO for many Gymnasium environments at once, with Discrete or Box actions.

    python ppo_vector.py --env-id CartPole-v1
    torchrun --nproc-per-node 2 ppo_vector.py --env-id LunarLander-v3 --total-timesteps 500000

Papers: PPO (Schulman et al. 2017, arXiv 1707.06347) and GAE (Schulman et al. 2016, arXiv 1506.02438). Departures:
normalized value targets, truncation bootstrapped from the last observation, advantages normalized over the rollout.
"""

import copy
import os
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
from gymnasium.spaces import Box, Discrete, flatten_space
from torch import distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Numbers after a semicolon are the range worth trying."""

    env_id: str = "CartPole-v1"  # Gymnasium id, or module:EnvId for your own environment
    exp_name: str = Path(__file__).stem  # part of the run folder's name
    seed: int = 1  # seed of weights, environments, actions and minibatches
    total_timesteps: int = 100_000  # environment steps, resets included, rounded up to whole rollouts
    learning_rate: float = 2e-3  # of Adam; 1e-4 to 3e-3
    anneal_lr: bool = True  # lower the learning rate linearly to 0 over the run
    num_envs: int = 16  # environments of each process
    vectorization_mode: Literal["sync", "async", "vector_entry_point"] | None = None  # None: native if any, else sync
    num_steps: int = 64  # steps of a rollout in each environment; 16 to 2048
    num_minibatches: int = 4  # minibatches of an epoch
    update_epochs: int = 5  # passes over each rollout; 3 to 20
    gamma: float = 0.995  # discount; 0.9 for short horizons to 0.999 for long ones
    gae_lambda: float = 0.97  # 0 is one-step TD, 1 is Monte Carlo; 0.9 to 1
    norm_adv: bool = True  # normalize advantages, once a rollout in each process
    norm_value: bool = True  # normalize value targets by running statistics: large ones swamp the policy's gradient
    norm_obs: bool = False  # normalize observations by running statistics, from the second rollout on
    clip_coef: float = 0.2  # clip range of the probability ratio; 0.1 to 0.3
    ent_coef: float = 0.01  # weight of the entropy bonus; 0 to 0.02
    vf_coef: float = 2.0  # weight of the value loss; 0.5 to 2
    max_grad_norm: float = 0.5  # longer gradients are scaled down to this norm
    target_kl: float | None = None  # end an update after an epoch whose mean KL exceeds this; 0.01 to 0.05
    hidden_size: int = 64  # width of the two hidden layers
    shared_backbone: bool = True  # hidden layers shared by policy and values, in place of two networks
    log_std_init: float = -0.5  # log of the initial standard deviation of Box actions; -1 to 1
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
        counts = ("total_timesteps", "num_envs", "num_minibatches", "update_epochs", "hidden_size")
        for name in (*counts, "checkpoint_interval", "learning_rate", "clip_coef", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be greater than 0")
        if not (0 <= self.gamma <= 1 and 0 <= self.gae_lambda <= 1 and min(self.seed, self.eval_episodes) >= 0):
            raise ValueError("--gamma and --gae-lambda must be from 0 to 1, --seed and --eval-episodes at least 0")
        checkpoint = self.evaluate or self.resume  # torch.load does not compare checksums, testzip does
        if checkpoint and (not zipfile.is_zipfile(checkpoint) or zipfile.ZipFile(checkpoint).testzip()):
            raise ValueError(f"no such file, or a damaged one: {checkpoint}")


def average(tensor):
    """Replace a tensor by its mean over the processes of torchrun, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
    return tensor


class RunningMeanStd(nn.Module):
    """Mean and standard deviation of all rows seen so far; 0 and std before the first."""

    def __init__(self, shape, std=1.0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.full(shape, std))
        self.register_buffer("count", torch.zeros(()))

    def update(self, rows):
        """Merge in the moments of rows (n, *shape) of all processes (Chan, Golub & LeVeque 1979)."""
        rows = torch.as_tensor(rows, device=self.mean.device).double() - self.mean
        count = average(torch.tensor(float(len(rows)), device=rows.device))  # rows of each process
        delta, square = average(torch.stack([rows.sum(0), rows.square().sum(0)])) / count
        weight = count / (self.count + count)
        variance = (1 - weight) * self.std**2 + weight * (square - delta**2) + weight * (1 - weight) * delta**2
        self.std.copy_(variance.clamp(min=1e-8).sqrt())
        self.mean += weight * delta
        self.count += count


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
        self.discrete = isinstance(action_space, Discrete)
        self.actor = nn.Linear(width, action_space.n if self.discrete else action_space.shape[0])
        self.log_std = None if self.discrete else nn.Parameter(torch.full(action_space.shape, args.log_std_init))
        self.critic = nn.Linear(width, 1)
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.orthogonal_(layer.weight, {self.actor: 0.01, self.critic: 1.0}.get(layer, 2**0.5))
            nn.init.zeros_(layer.bias)

    def forward(self, obs):
        """Logits (B, n) or means (B, K), and values (B,) in units of the return, of raw observations (B, obs_dim)."""
        if self.obs_stats:
            obs = ((obs - self.obs_stats.mean) / self.obs_stats.std).clamp(-10, 10)
        hidden = self.backbone(obs)
        values = self.critic(self.critic_backbone(obs) if self.critic_backbone else hidden).squeeze(-1)
        return self.actor(hidden), values * self.return_stats.std + self.return_stats.mean

    def numpy_actor(self):
        """The actor of `forward` in NumPy, which is faster for small batches. Change both, or act in torch:
        return lambda obs: self(self.return_stats.mean.new_tensor(obs))[0].detach().cpu().numpy()"""
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
        outputs, values = self(obs)
        if self.discrete:
            logp = outputs.log_softmax(-1)
            return logp.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1).mean(), values
        policy = torch.distributions.Normal(outputs, self.log_std.exp())
        return policy.log_prob(actions).sum(-1), policy.entropy().sum(-1).mean(), values


def make_envs(env_id, num_envs, mode=None, video=None):
    """Make environments with flat observations and actions for ActorCritic, or exit with a one-line error."""
    try:
        envs = gym.make_vec(env_id, num_envs, mode, **({"render_mode": "rgb_array"} if video else {}))
        envs = gym.wrappers.vector.RecordVideo(envs, video) if video else envs
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {env_id}: {error}") from error
    if envs.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.NEXT_STEP:  # a reset is a step of its own
        raise SystemExit(f"error: {env_id} has no NEXT_STEP autoreset: use --vectorization-mode sync")
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    # Add your own vector wrappers here. To normalize observations, use --norm-obs: checkpoints contain its statistics.
    obs_space, space = envs.single_observation_space, envs.single_action_space
    if obs_space != flatten_space(obs_space):  # only then: it would take 15% of the time on CartPole
        envs = gym.wrappers.vector.FlattenObservation(envs)
    fits = isinstance(space, Discrete) or (isinstance(space, Box) and space.dtype.kind == "f")
    if not fits or not isinstance(envs.single_observation_space, Box):
        raise SystemExit(f"error: {env_id}: Discrete or float Box actions, fixed-size observations only")
    if isinstance(space, Discrete):
        return gym.wrappers.vector.TransformAction(envs, lambda action: space.start + action, None, Discrete(space.n))
    box = flatten_space(space)  # [-1, 1] is scaled to its bounds, if all are finite
    mid, half = (box.high / 2 + box.low / 2, box.high / 2 - box.low / 2) if box.is_bounded() else (0, 1)
    return gym.wrappers.vector.TransformAction(  # fmin and fmax turn NaN into a bound: some environments crash on NaN
        envs, lambda a: np.fmin(np.fmax(mid + half * a, box.low), box.high).reshape(num_envs, *space.shape), None, box
    )


def collect_rollout(envs, agent, obs, done, args, rng):
    """Play from obs (N, obs_dim). Environments that are done (N,) are reset first, by a step that valid masks out.
    Returns the rollout, arguments for compute_gae, the next obs and done, (return, length) of each episode."""
    actor, outputs, actions, episodes = agent.numpy_actor(), [], [], []
    raw_obs, rewards = np.empty((args.num_steps + 1, *obs.shape), np.float32), np.empty((args.num_steps, len(obs)))
    valid, terminated, truncated = np.empty((3, args.num_steps, len(obs)), bool)
    for t in range(args.num_steps):
        raw_obs[t] = obs
        valid[t] = ~done
        outputs.append(actor(raw_obs[t]))
        if agent.discrete:
            actions.append((outputs[t] + rng.gumbel(size=outputs[t].shape)).argmax(-1))  # Gumbel-max: a sample
        else:
            actions.append(rng.normal(outputs[t], agent.log_std.exp().tolist()).astype(np.float32))
        obs, rewards[t], terminated[t], truncated[t], info = envs.step(actions[t])
        done = terminated[t] | truncated[t]
        episodes += [(info["episode"]["r"][i], info["episode"]["l"][i]) for i in np.flatnonzero(done)]
    raw_obs[-1] = obs
    if not all(np.isfinite(x).all() for x in (raw_obs, rewards)):
        raise SystemExit("error: the environment gave an observation or a reward that is NaN or Inf")
    # Values and log-probabilities of the whole rollout in one pass: 1 us a step instead of 100
    obs_batch = torch.as_tensor(raw_obs[:-1][valid], device=args.device)
    action_batch = torch.as_tensor(np.array(actions)[valid], device=args.device)
    with torch.no_grad():
        logprobs, _, _ = agent.evaluate_actions(obs_batch, action_batch)
        expected, values = agent(torch.as_tensor(raw_obs, device=args.device).flatten(0, 1))
    outputs, expected = np.concatenate(outputs), expected[: -len(obs)]
    same = np.allclose(outputs, expected.cpu(), atol=1e-3 * min(np.abs(outputs).max(), 10))  # 10: a mask may be -1e9
    assert same, "ActorCritic.numpy_actor and forward differ: change both, or act in torch as numpy_actor describes"
    values = values.cpu().numpy().reshape(args.num_steps + 1, -1)
    rollout = {"obs": obs_batch, "actions": action_batch, "logprobs": logprobs, "valid": valid}
    return rollout, (rewards, values[:-1], values[1:], terminated, truncated), obs, done, episodes


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
            if dist.is_initialized():
                gradients = [p.grad for p in agent.parameters() if p.grad is not None]
                nn.utils.vector_to_parameters(average(nn.utils.parameters_to_vector(gradients)), gradients)
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            losses.append(torch.stack([policy_loss, value_loss, entropy, grad_norm]).detach())
            logratios.append(logratio.detach())
        logratio = torch.cat(logratios)[-len(returns) :]  # of this epoch
        if args.target_kl is not None and average((logratio.expm1() - logratio).mean()) > args.target_kl:
            break
    logratio = torch.cat(logratios)
    names = ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm")
    metrics["losses/approx_kl"] = (logratio.expm1() - logratio).mean().item()  # (r - 1) - log r
    metrics["losses/clipfrac"] = (logratio.expm1().abs() > args.clip_coef).float().mean().item()
    return metrics | dict(zip(names, torch.stack(losses).mean(0).tolist(), strict=True))


def evaluate(agent, args, folder):
    """Play greedy episodes, statistics frozen. Prints and returns their mean return."""
    envs = make_envs(args.env_id, 1, args.vectorization_mode, folder / "videos" if args.capture_video else None)
    returns = []
    obs, _ = envs.reset(seed=args.seed + 10**6)
    while len(returns) < max(args.eval_episodes, 1):  # the flag of a checkpoint may be 0
        outputs = agent(torch.as_tensor(obs, dtype=torch.float32, device=args.device))[0].detach().cpu().numpy()
        obs, _, _, _, info = envs.step(outputs.argmax(-1) if agent.discrete else outputs)
        if "episode" in info:
            returns.append(info["episode"]["r"][0])
    envs.close()
    print(f"evaluation: mean return {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes")
    return np.mean(returns)


def save_checkpoint(path, args, global_step, agent, optimizer):
    """Write the whole file or nothing: a run that is killed here leaves the previous checkpoint."""
    state = {"args": asdict(args) | {"resume": None}, "step": global_step}
    torch.save(state | {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}, f"{path}.tmp")
    Path(f"{path}.tmp").replace(path)


def train(args):
    """Train by PPO (Schulman et al. 2017, algorithm 1), then evaluate. Returns the agent."""
    # Set up the processes, the environments, the agent and the optimizer
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if args.num_steps // 2 * args.num_envs < args.num_minibatches:  # at worst every second step is a reset
        raise SystemExit("error: half of --num-steps (rounded down) x --num-envs must be at least --num-minibatches")
    if world_size > 1:
        dist.init_process_group("gloo")
    saved = torch.load(args.evaluate or args.resume, map_location="cpu") if args.evaluate or args.resume else None
    start_step = global_step = saved["step"] if saved else 0
    if start_step >= args.total_timesteps and not args.evaluate:
        raise SystemExit(f"error: this run is finished: to go on, raise --total-timesteps above {start_step}")
    seed = args.seed + start_step  # so that a resumed run does not repeat its random numbers
    np.random.seed(seed + rank)  # for environments that use it
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads slow down networks this small
    rng = np.random.default_rng([seed, rank])
    if args.capture_video:  # fail now, not after the training
        make_envs(args.env_id, 1, args.vectorization_mode, Path(tempfile.mkdtemp(), "videos")).close()
    envs = make_envs(args.env_id, args.num_envs, args.vectorization_mode)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(args.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    if saved:  # of the optimizer only the moments: the learning rates are those of the flags
        agent.load_state_dict(saved["agent"])
        optimizer.load_state_dict(saved["optimizer"] | {"param_groups": optimizer.state_dict()["param_groups"]})
    if args.evaluate:
        envs.close()
        if rank == 0:
            evaluate(agent, args, Path(args.evaluate).parent)
        return agent
    schedule = LambdaLR(optimizer, lambda _epoch: 1 - global_step / args.total_timesteps if args.anneal_lr else 1)

    # Set up the run folder and TensorBoard
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time():.0f}".replace("/", "_").replace(":", "_")
    folder = Path(args.resume).parent if args.resume else Path(args.log_dir, name)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=bool(args.resume))
        writer = SummaryWriter(folder, purge_step=start_step + 1 if args.resume else None)
        flags = {k: "None" if value is None else value for k, value in asdict(args).items()}
        for summary in torch.utils.tensorboard.summary.hparams(flags, {"eval/mean_return": 0}):
            writer.file_writer.add_summary(summary)

    last_returns, solved, start_time = [], False, time.perf_counter()
    (obs, _), done = envs.reset(seed=int(rng.integers(2**31))), np.zeros(args.num_envs, bool)
    batch_size = args.num_steps * args.num_envs * world_size
    try:
        while global_step < args.total_timesteps and not solved:
            rollout, transitions, obs, done, episodes = collect_rollout(envs, agent, obs, done, args, rng)
            advantages, returns = (x[rollout["valid"]] for x in compute_gae(*transitions, args.gamma, args.gae_lambda))
            if args.norm_value:
                agent.return_stats.update(returns)
            metrics = ppo_update(agent, optimizer, rollout, advantages, returns, args, rng)
            if args.norm_obs:
                agent.obs_stats.update(rollout["obs"])  # after the update: the policy acted by the old ones
            global_step += batch_size
            metrics["charts/learning_rate"] = schedule.get_last_lr()[0]
            schedule.step()  # its lambda reads global_step
            if dist.is_initialized():
                gathered = [None] * world_size
                dist.all_gather_object(gathered, episodes)
                episodes = [episode for part in gathered for episode in part]

            # Log to TensorBoard and the terminal
            last_returns = [*last_returns, *(episode_return for episode_return, _ in episodes)][-20:]
            mean_return = np.mean(last_returns) if last_returns else np.nan
            solved = args.target_return is not None and len(last_returns) == 20 and mean_return >= args.target_return
            if rank > 0:
                continue
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
            if global_step // batch_size % args.checkpoint_interval == 0:
                save_checkpoint(folder / "checkpoint.pt", args, global_step, agent, optimizer)

        envs.close()  # before evaluate makes its own: some environments allow only one at a time
        if rank == 0:
            print(end="\n" if sys.stdout.isatty() else "")  # end the status line
            if solved:
                print(f"solved: mean return {mean_return:.1f} over the last 20 episodes at step {global_step}")
            if args.eval_episodes:
                writer.add_scalar("eval/mean_return", evaluate(agent, args, folder), global_step)
    finally:  # also after an error, Ctrl-C or SIGTERM
        if rank == 0:
            save_checkpoint(folder / "checkpoint.pt", args, global_step, agent, optimizer)
            writer.close()
            print(f"checkpoint: {folder / 'checkpoint.pt'}")
        if dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(0.1)  # without this, a gloo thread that still frees a tensor may abort the process
    return agent


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # train saves, and no traceback
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = tyro.cli(Args)
    if checkpoint := args.evaluate or args.resume:  # flags default to the checkpoint's
        args = tyro.cli(Args, default=Args(**torch.load(checkpoint, map_location="cpu")["args"]))
    train(args)
