# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.13,<2.14", "gymnasium[box2d]>=1.2.3,<1.5", "numpy>=2", "tyro>=1.0.17", "tensorboard>=2.18"]
# ///
"""PPO for one Gymnasium environment with Discrete, MultiDiscrete or MultiBinary actions.

    python ppo_discrete.py --env-id CartPole-v1

It solves CartPole after about 20,000 steps and is done in 12 seconds; LunarLander-v3 takes 40 seconds for 300,000.
Papers: PPO (Schulman et al. 2017, arXiv 1707.06347) and GAE (Schulman et al. 2016, arXiv 1506.02438). Beyond these,
value targets are normalised, since raw ones swamp the policy's gradient in the shared backbone; a truncated episode is
bootstrapped from its last state; advantages are normalised; long gradients are scaled down. `train`, at the bottom, is
the algorithm: read it first.
"""

import copy
import importlib
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class BadInput(ValueError):
    """The user asked for what cannot work; the message says why and what would."""


@dataclass
class Args:
    env_id: str = "CartPole-v1"  # Gymnasium id, or module:EnvId for an environment of your own
    exp_name: str = Path(__file__).stem  # part of the run folder's name
    seed: int = 1  # fixes weights, environment, actions and minibatches
    total_timesteps: int = 100_000  # environment steps, rounded up to whole rollouts
    learning_rate: float = 1.5e-3  # of Adam; 1e-4 to 3e-3
    anneal_lr: bool = True  # lower the learning rate linearly to 0 over the run
    num_steps: int = 1024  # steps of a rollout; 512 to 4096
    num_minibatches: int = 4  # minibatches of an epoch
    update_epochs: int = 10  # passes over each rollout; 3 to 20
    gamma: float = 0.995  # discount; 0.9 for short horizons to 0.999 for long ones
    gae_lambda: float = 0.97  # 0: one-step advantages, 1: Monte Carlo; 0.9 to 1
    norm_adv: bool = True  # normalise advantages, once a rollout
    norm_value: bool = True  # normalise value targets by running statistics of the returns
    norm_obs: bool = False  # normalise observations by running statistics
    clip_coef: float = 0.2  # clip range of the probability ratio; 0.1 to 0.3
    ent_coef: float = 0.01  # weight of the entropy bonus; 0 to 0.02
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # longer gradients are scaled down to this norm
    target_kl: float | None = None  # stop an update once an epoch's approx_kl exceeds this; 0.01 to 0.05
    hidden_size: int = 128  # width of the two hidden layers
    target_return: float | None = None  # stop once the mean of the last 20 episode returns reaches this
    eval_episodes: int = 20  # greedy episodes at the end
    capture_video: bool = False  # film some of the greedy episodes (pip install moviepy)
    checkpoint_interval: int = 50  # iterations between checkpoints; each cuts the episode in progress
    resume: str | None = None  # checkpoint to train on from; its flags are the defaults of the command line
    evaluate: str | None = None  # checkpoint to evaluate, without training; likewise
    log_dir: str = "runs"  # parent of the run folders
    device: Literal["cpu", "cuda", "mps"] = "cpu"  # cpu is fastest for networks this small
    num_threads: int = 1  # CPU threads of torch; more slow down networks this small
    torch_deterministic: bool = True  # let cuDNN use deterministic algorithms only

    def __post_init__(self):
        for low, high, names in (
            (1, 1e12, "total_timesteps num_minibatches update_epochs hidden_size checkpoint_interval"),
            (1, 256, "num_threads"),
            (0, 1e9, "seed ent_coef vf_coef eval_episodes"),
            (0, 1, "gamma gae_lambda"),
            (1e-9, 1e9, "learning_rate clip_coef max_grad_norm target_kl"),
            (-1e99, 1e99, "target_return"),
        ):
            for name in names.split():
                if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} must be from {low:g} to {high:g}, not {getattr(self, name)}")
        if self.num_steps < 2 * self.num_minibatches:
            raise ValueError(f"--num-steps must be at least 2 x --num-minibatches {self.num_minibatches}")
        if self.evaluate and (self.resume or not self.eval_episodes):
            raise ValueError("--evaluate goes without --resume, which trains, and with --eval-episodes 1 or more")


class RunningMeanStd(nn.Module):
    """Mean and variance, in float64, of all rows of one shape seen so far; 0 and 1 before the first."""

    def __init__(self, shape):
        super().__init__()
        for name, value in ("mean", torch.zeros(shape)), ("var", torch.ones(shape)), ("count", torch.zeros(())):
            self.register_buffer(name, value.double())

    def _apply(self, fn, recurse=True):
        return self  # stays on the CPU when the agent moves: NumPy reads it, and mps has no float64

    def update(self, rows):
        """Merge in the moments of rows (n, *shape) (Chan, Golub & LeVeque 1979)."""
        rows, n = torch.as_tensor(rows, dtype=torch.float64), len(rows)
        delta, total = rows.mean(0) - self.mean, self.count + n
        self.var += (rows.var(0, correction=0) - self.var + delta**2 * self.count / total) * n / total
        self.mean += delta * n / total
        self.count += n

    def moments(self):
        """Copies of mean and standard deviation: float32 arrays of the rows' shape."""
        return self.mean.numpy().astype(np.float32), np.sqrt(self.var.numpy() + 1e-8).astype(np.float32)


class ActorCritic(nn.Module):
    """Policy and value function on one backbone. An action (MultiDiscrete) has K components of up to n choices each."""

    def __init__(self, obs_dim, action_space, hidden_size):
        super().__init__()
        choices = torch.as_tensor(action_space.nvec)
        self.action_dims = (len(choices), int(choices.max()))  # (K, n)
        # A component of fewer than n choices gives the rest logits so low that their probability is 0.
        missing = torch.arange(choices.max()) >= choices.unsqueeze(-1)
        self.register_buffer("mask", -1e9 * missing.float(), persistent=False)
        self.backbone = nn.Sequential(
            nn.Linear(obs_dim, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU()
        )
        self.actor = nn.Linear(hidden_size, math.prod(self.action_dims))
        self.critic = nn.Linear(hidden_size, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, {self.actor: 0.01, self.critic: 1.0}.get(layer, 2**0.5))
                nn.init.zeros_(layer.bias)
        self.obs_stats, self.return_stats = RunningMeanStd((obs_dim,)), RunningMeanStd(())

    def forward(self, obs):
        """Logits (B, K, n) and normalised values (B,) at normalised observations (B, obs_dim)."""
        hidden = self.backbone(obs)
        return self.actor(hidden).unflatten(-1, self.action_dims) + self.mask, self.critic(hidden).squeeze(-1)

    def evaluate_actions(self, obs, actions):
        """Log-probabilities of actions (B, K), entropies and normalised values, each (B,)."""
        logits, values = self(obs)
        logps = logits.log_softmax(-1)
        logprobs = logps.gather(-1, actions.unsqueeze(-1)).sum((-2, -1))
        return logprobs, -(logps.exp() * logps).sum((-2, -1)), values

    def sample_noise(self, rng, num_actions):
        """What act adds to logits before argmax, (num_actions, K, n): mask and Gumbel noise. Without rng no noise."""
        shape = (num_actions, *self.action_dims)
        noise = rng.gumbel(size=shape) if rng else np.zeros(shape)
        return noise.astype(np.float32) + self.mask.cpu().numpy()

    def behaviour(self):
        """Copy the policy to NumPy, where an action takes 6 to 10 us instead of 140 and more.

        Returns normalise(obs) -> inputs and act(inputs (obs_dim,), noise (K, n)) -> action (K,).
        Raises NotImplementedError at a layer it does not know.
        """
        mean, std = self.obs_stats.moments()
        has_stats, layers = bool(self.obs_stats.count), []
        for layer in (*self.backbone, self.actor):
            if isinstance(layer, nn.Linear):
                weight, bias = (p.detach().cpu().numpy().copy() for p in (layer.weight.T, layer.bias))
                layers.append(lambda x, weight=weight, bias=bias: x.dot(weight) + bias)
            elif isinstance(layer, (nn.Tanh, nn.ReLU)):
                layers.append(np.tanh if isinstance(layer, nn.Tanh) else lambda x: np.maximum(x, 0))
            else:
                raise NotImplementedError(f"behaviour() does not know {layer}: add its NumPy form beside nn.Tanh")

        def normalise(obs):
            return np.clip((obs - mean) / std, -10, 10) if has_stats else obs

        def act(inputs, noise):
            for layer in layers:
                inputs = layer(inputs)
            return (inputs.reshape(noise.shape) + noise).argmax(-1)

        return normalise, act


def make_env(env_id, video_folder=None, time_limit=None):
    """Make an environment with flat observations, MultiDiscrete actions and info["episode"], or raise BadInput.

    time_limit, in steps, holds only where the id sets none.
    """
    try:
        env = gym.make(env_id, **({"render_mode": "rgb_array"} if video_folder else {}))
    except (gym.error.Error, ImportError) as error:
        raise BadInput(f"--env-id {env_id}: {error}") from error
    match space := env.action_space:
        case Discrete(n=choices) | MultiDiscrete(nvec=choices):
            nvec = np.ravel(choices)
        case MultiBinary():
            nvec = [2] * math.prod(space.shape)
        case _:
            raise BadInput(f"--env-id {env_id} has actions {space}: use ppo_continuous.py for float Box, wrap others")

    def to_env(action):
        return (getattr(space, "start", 0) + action.reshape(space.shape)).astype(space.dtype)[()]  # [()]: a number

    if not isinstance(env.observation_space, Box) or len(env.observation_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    # A text would become numbers of its characters, which nobody means.
    if not isinstance(env.observation_space, Box) or "Text(" in str(env.unwrapped.observation_space):
        raise BadInput(f"--env-id {env_id} has observations of no fixed size, or Text: wrap it to give a Box")
    if time_limit and env.spec.max_episode_steps is None:
        env = gym.wrappers.TimeLimit(env, time_limit)
    env = gym.wrappers.RecordVideo(env, str(video_folder)) if video_folder else env
    return gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TransformAction(env, to_env, MultiDiscrete(nvec)))


def collect_rollout(env, agent, obs, num_steps, rng, first_step=0):
    """Play T = num_steps steps from obs; returns the rollout, the next obs and episodes as (last step, return, length).

    Index t is one transition: next_obs[t] is what its action led to, at an episode's end too, never the obs of a reset.
    Raises FloatingPointError if the environment gives NaN or Inf.
    """
    (normalise, act), noise = agent.behaviour(), agent.sample_noise(rng, num_steps)
    raw_obs, next_obs = np.empty((2, num_steps, len(obs)), np.float32)
    terminated, truncated = np.empty((2, num_steps), bool)
    rewards, actions, episodes = np.empty(num_steps), [], []
    for t in range(num_steps):
        raw_obs[t] = obs
        actions.append(act(normalise(raw_obs[t]), noise[t]))
        obs, rewards[t], terminated[t], truncated[t], info = env.step(actions[t])
        next_obs[t] = obs
        if terminated[t] or truncated[t]:
            episodes.append((first_step + t + 1, float(info["episode"]["r"]), info["episode"]["l"]))
            obs, _ = env.reset()
    finite = np.isfinite(raw_obs).all(-1) & np.isfinite(next_obs).all(-1) & np.isfinite(rewards)
    if not finite.all():
        raise FloatingPointError(f"an observation or reward is NaN or Inf at step {first_step + finite.argmin() + 1}")
    # Forward passes over the whole rollout, not one a step: 1 us a step instead of 100.
    batch = normalise(raw_obs), np.stack(actions), normalise(next_obs)
    device = next(agent.parameters()).device
    obs_batch, action_batch, next_obs_batch = (torch.as_tensor(x, device=device) for x in batch)
    with torch.no_grad():
        logprobs, _, values = agent.evaluate_actions(obs_batch, action_batch)
        _, next_values = agent(next_obs_batch)
    mean, std = agent.return_stats.moments()
    values, next_values = values.cpu().numpy() * std + mean, next_values.cpu().numpy() * std + mean
    rollout = {"raw_obs": raw_obs, "obs": obs_batch, "actions": action_batch, "logprobs": logprobs, "values": values}
    rollout |= {"next_values": next_values, "rewards": rewards, "terminated": terminated, "truncated": truncated}
    return rollout, obs, episodes


def compute_gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """Advantages and returns, arrays (T, ...) as the arguments are (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma (1 - terminated_t) V(next_obs_t) - V(obs_t)
    A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}, with ended_t = terminated_t or truncated_t
    R_t = A_t + V(obs_t)
    """
    deltas = rewards + gamma * ~terminated * next_values - values
    decay = gamma * gae_lambda * ~(terminated | truncated)
    advantages, last = np.empty_like(deltas), 0.0
    for t in reversed(range(len(deltas))):
        advantages[t] = last = deltas[t] + decay[t] * last
    return advantages, advantages + values


def make_optimizer(agent, learning_rate):
    """Adam on one flat tensor, of which the agent's parameters become views: an update takes a tenth less time."""
    parameters = list(agent.parameters())
    flat, sizes = nn.utils.parameters_to_vector(parameters).detach(), [p.numel() for p in parameters]
    flat.grad = torch.zeros_like(flat)
    for p, data, grad in zip(parameters, flat.split(sizes), flat.grad.split(sizes), strict=True):
        p.data, p.grad = data.view_as(p), grad.view_as(p)
    return torch.optim.Adam([flat], lr=learning_rate, eps=1e-5, fused=True)


def ppo_update(agent, optimizer, rollout, advantages, returns, args, rng):
    """Minimise the PPO loss on a rollout (Schulman et al. 2017, equations 7 and 9), V and R normalised, c = clip_coef:

    L = -mean min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef mean (V - R)^2 / 2 - ent_coef mean H
    with r = pi(a|s) / pi_old(a|s). The clipped term is the smaller one only beyond (1 + c) A where A > 0 and (1 - c) A
    where A < 0, both of which are A + c |A|: so the min is min(r A, A + c |A|), whose second term never changes.
    Returns metrics, means over all minibatches; explained_variance is that of the values before the update.
    """
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    mean, std = agent.return_stats.moments()
    device = next(agent.parameters()).device
    arrays = np.stack([advantages, advantages + args.clip_coef * np.abs(advantages), (returns - mean) / std])
    data = [rollout[name] for name in ("obs", "actions", "logprobs")]
    data += torch.tensor(arrays, dtype=torch.float32).to(device)
    (flat,) = optimizer.param_groups[0]["params"]
    losses, logratios = [], []
    for _ in range(args.update_epochs):
        order = torch.as_tensor(rng.permutation(len(returns)), device=device)
        for minibatch in zip(*(x[order].tensor_split(args.num_minibatches) for x in data), strict=True):
            obs, actions, old_logprobs, advantage, bound, target = minibatch
            logprobs, entropy, values = agent.evaluate_actions(obs, actions)
            logratio = logprobs - old_logprobs
            policy_loss = -torch.min(logratio.exp() * advantage, bound).mean()
            value_loss = 0.5 * (values - target).square().mean()
            loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy.mean()
            flat.grad.zero_()  # optimizer.zero_grad() would part it from the parameters' gradients, views of it
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(flat, args.max_grad_norm)
            optimizer.step()
            losses.append(torch.stack([policy_loss, value_loss, entropy.mean(), grad_norm]).detach())
            logratios.append(logratio.detach())
        epoch = torch.cat(logratios[-args.num_minibatches :])
        if args.target_kl is not None and (epoch.expm1() - epoch).mean() > args.target_kl:
            break
    logratio = torch.cat(logratios)
    names = ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm")
    return dict(zip(names, torch.stack(losses).mean(0).tolist(), strict=True)) | {
        "losses/old_approx_kl": -logratio.mean().item(),  # mean of -log r; approx_kl, of (r - 1) - log r, varies less
        "losses/approx_kl": (logratio.expm1() - logratio).mean().item(),
        "losses/clipfrac": (logratio.expm1().abs() > args.clip_coef).float().mean().item(),
        "losses/explained_variance": 1 - np.var(returns - rollout["values"]) / (np.var(returns) + 1e-8),
    }


def evaluate(agent, args, folder):
    """Play greedy episodes, statistics frozen, in an environment of their own; print and return their mean return."""
    # The time limit is for environments without one, where a greedy agent may walk in circles for ever.
    env, returns = make_env(args.env_id, folder / "videos" if args.capture_video else None, time_limit=10_000), []
    obs, _ = env.reset(seed=args.seed + 10**6)
    while len(returns) < args.eval_episodes:
        _, obs, episodes = collect_rollout(env, agent, obs, 500, rng=None)
        returns += [episode_return for _, episode_return, _ in episodes]
    env.close()
    returns = returns[: args.eval_episodes]
    print(f"evaluation: mean return {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes")
    return np.mean(returns)


def checkpoint_state(agent, optimizer, args, iteration, step, episode_returns):
    """Copy of all that a run needs to go on. Noise and shuffles come from (seed, iteration): no RNG state to save."""
    versions = {"torch": str(torch.__version__), "gymnasium": gym.__version__, "numpy": np.__version__}
    state = {"versions": versions, "args": asdict(args) | {"resume": None}, "iteration": iteration, "step": step}
    state |= {"agent": agent.state_dict(), "optimizer": optimizer.state_dict(), "returns": episode_returns[-20:]}
    return copy.deepcopy(state)


def save_checkpoint(path, state):
    """Write the whole file or nothing: a run killed here keeps the checkpoint from before."""
    torch.save(state, f"{path}.tmp")
    Path(f"{path}.tmp").replace(path)


def load_checkpoint(path):
    """Read a checkpoint, its args as Args, or raise BadInput: unreadable, or of a script with other flags."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state | {"args": Args(**state["args"])}
    except Exception as error:  # torch.load has a dozen types for the ways in which a file can be broken
        raise BadInput(f"{path!r} is not a readable checkpoint.pt of this script ({type(error).__name__})") from error


def start_run(args, step):
    """Make a run folder, or take that of args.resume. Returns the checkpoint's path and a TensorBoard writer."""
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time():.0f}".replace("/", "_").replace(":", "_")
    folder = Path(args.resume).parent if args.resume else Path(args.log_dir, name)
    try:
        folder.mkdir(parents=True, exist_ok=bool(args.resume))
        writer = SummaryWriter(folder, purge_step=step + 1 if args.resume else None, flush_secs=5)
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.exists():  # another run of this name began in this second
            time.sleep(1)
            return start_run(args, step)
        raise BadInput(f"{folder} cannot be written, see --log-dir and --exp-name: {error}") from error
    flags = {name: "None" if value is None else value for name, value in asdict(args).items()}
    writer.add_text("flags", "\n".join(f"    {name} = {value}" for name, value in flags.items()))
    for summary in hparams(flags, {"eval/mean_return": 0}):
        writer.file_writer.add_summary(summary)
    return folder / "checkpoint.pt", writer


def log_iteration(writer, args, iteration, step, metrics, episodes, mean_return, last):
    """Write metrics to TensorBoard and a status line: over itself on a terminal, elsewhere about 20 lines in a run."""
    if episodes:
        _, metrics["charts/episodic_return"], metrics["charts/episodic_length"] = np.mean(episodes, axis=0)
        metrics["charts/episodic_return_20"] = mean_return
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)
    if last or sys.stdout.isatty() or iteration % math.ceil(args.total_timesteps * iteration / step / 20) == 0:
        done, sps = min(step / args.total_timesteps, 1), metrics["charts/SPS"]
        status = f"{done:4.0%}  step {step}  mean return {mean_return:.1f}  {sps:.0f} steps/s"
        status += f"  {max(args.total_timesteps - step, 0) / sps:.0f} s left"
        print(f"{status:<79}", end="\r" if sys.stdout.isatty() and not last else "\n", flush=True)
    if iteration % args.checkpoint_interval == 0 and math.isnan(mean_return):
        hint = "raise --checkpoint-interval, since a checkpoint cuts the episode, or set the environment a time limit"
        print(f"warning: no episode has ended in {step} steps: {hint}", file=sys.stderr)


def prepare(args):
    """Make the environment, the agent and its optimizer, new or as in the checkpoint args.resume or args.evaluate.

    Returns them and the iterations, steps and last episode returns done so far. Raises BadInput.
    """
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    if not getattr(torch, args.device).is_available():
        raise BadInput(f"--device {args.device} is not available here: use --device cpu")
    env = make_env(args.env_id)
    if args.capture_video:
        try:  # now, not after the training
            importlib.import_module("moviepy")
            if "rgb_array" not in env.metadata["render_modes"]:
                raise ValueError("rgb_array is not one of its render modes")
            with gym.make(args.env_id, render_mode="rgb_array") as film:
                film.reset()
                _height, _width, _colours = np.shape(film.render())  # fails unless it is a frame
        except Exception as error:  # each renderer has its own
            needs = "moviepy (pip install moviepy) and an environment that renders rgb_array"
            raise BadInput(f"--capture-video needs {needs}: {error!r:.200}") from error
    agent = ActorCritic(env.observation_space.shape[0], env.action_space, args.hidden_size)
    optimizer = make_optimizer(agent.to(args.device), args.learning_rate)
    if not (args.resume or args.evaluate):
        return env, agent, optimizer, 0, 0, []
    saved = load_checkpoint(path := args.resume or args.evaluate)
    if args.resume and saved["step"] >= args.total_timesteps:
        raise BadInput(f"{args.resume} has done its {saved['step']} steps: raise --total-timesteps")
    try:
        agent.load_state_dict(saved["agent"])
    except RuntimeError as error:
        where = f"--env-id {saved['args'].env_id} --hidden-size {saved['args'].hidden_size}"
        raise BadInput(f"{path} holds the weights of another network: it was trained with {where}") from error
    optimizer.load_state_dict(saved["optimizer"])
    return env, agent, optimizer, saved["iteration"], saved["step"], saved["returns"]


def train(args):
    """Train by PPO (Schulman et al. 2017, algorithm 1), then evaluate; with args.evaluate only evaluate.

    Returns the agent and its episode returns, a resumed run's with the last 20 of its checkpoint in front.
    Raises BadInput before anything is written, FloatingPointError at a NaN or Inf.
    """
    env, agent, optimizer, iteration, step, episode_returns = prepare(args)
    if args.evaluate:
        evaluate(agent, args, Path(args.evaluate).parent)
        return agent, episode_returns
    checkpoint, writer = start_run(args, step)
    mean_return = np.mean(episode_returns[-20:]) if episode_returns else math.nan
    state, solved, last = None, None, False
    began, first_step = time.perf_counter(), step
    try:
        while not last:
            rng = np.random.default_rng([args.seed, iteration])
            if step == first_step or iteration % args.checkpoint_interval == 0:
                # A resumed run must begin a new episode, so every run does after a checkpoint, and the two stay equal.
                env.close()
                env = make_env(args.env_id)
                obs, _ = env.reset(seed=int(rng.integers(2**31)))
            learning_rate = args.learning_rate * (1 - step / args.total_timesteps if args.anneal_lr else 1)
            optimizer.param_groups[0]["lr"] = learning_rate

            rollout, obs, episodes = collect_rollout(env, agent, obs, args.num_steps, rng, step)
            transitions = (rollout[k] for k in ("rewards", "values", "next_values", "terminated", "truncated"))
            advantages, returns = compute_gae(*transitions, args.gamma, args.gae_lambda)
            if args.norm_value:
                agent.return_stats.update(returns)
            if args.norm_obs:
                agent.obs_stats.update(rollout["raw_obs"])
            metrics = ppo_update(agent, optimizer, rollout, advantages, returns, args, rng)
            iteration, step = iteration + 1, step + args.num_steps
            if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
                raise FloatingPointError(f"NaN or Inf in the update at step {step}: {', '.join(broken)}")

            for last_step, episode_return, _ in episodes:
                episode_returns.append(episode_return)
                mean_return = np.mean(episode_returns[-20:])
                reached = args.target_return is not None and mean_return >= args.target_return
                if reached and len(episode_returns) >= 20 and not solved:
                    solved = f"solved: mean return {mean_return:.1f} over the last 20 episodes at step {last_step}"
            last = step >= args.total_timesteps or solved is not None
            metrics["charts/learning_rate"] = learning_rate
            metrics["charts/SPS"] = (step - first_step) / (time.perf_counter() - began)
            log_iteration(writer, args, iteration, step, metrics, episodes, mean_return, last)
            state = checkpoint_state(agent, optimizer, args, iteration, step, episode_returns)
            if last or iteration % args.checkpoint_interval == 0:
                writer.flush()
                save_checkpoint(checkpoint, state)
        if solved:
            print(solved)
        if args.eval_episodes:
            writer.add_scalar("eval/mean_return", evaluate(agent, args, checkpoint.parent), step)
    except (KeyboardInterrupt, SystemExit):
        if state:
            save_checkpoint(checkpoint, state)  # of the last whole iteration
        raise
    finally:
        writer.close()
        env.close()
        if checkpoint.exists():
            print(f"checkpoint: {checkpoint}")
    return agent, episode_returns


def saved_args(resume: str | None = None, evaluate: str | None = None):
    """The Args of the checkpoint to go on from, or else the defaults: what holds for the flags that are not given."""
    path = evaluate if resume is None else resume
    return Args() if path is None else load_checkpoint(path)["args"]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        default, _ = tyro.cli(saved_args, return_unknown_args=True, add_help=False)
        train(tyro.cli(Args, default=default))
    except (BadInput, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
