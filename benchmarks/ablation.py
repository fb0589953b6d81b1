"""What each decision is worth: train the defaults with one of them changed, into benchmarks/results/runs.csv.

python benchmarks/ablation.py
"""

from grid import WORKS, run

ENV_IDS = ("CartPole-v1", "Pendulum-v1", "LunarLander-v3", "LunarLanderContinuous-v3")

# What no flag switches is patched: pairs of (text of the script, other text)
TERMINATED = ("gamma * (1 - terminated) * next", "gamma * (1 - terminated) * (1 - truncated) * next")
LOGRATIO = '            logratio = logprobs - rollout["logprobs"][rows]\n'
SCALED = "            scaled = (advantages[rows] - advantages[rows].mean()) / (advantages[rows].std() + 1e-8)\n"
MINIBATCH_ADVANTAGES = (
    (LOGRATIO, LOGRATIO + SCALED),
    ("ratio * advantages[rows], clipped * advantages[rows]", "ratio * scaled, clipped * scaled"),
)
TANH = (
    ("nn.Sequential(first, nn.ReLU(), second, nn.ReLU())", "nn.Sequential(first, nn.Tanh(), second, nn.Tanh())"),
    ("hidden = np.maximum(obs @", "hidden = np.tanh(obs @"),
    ('["backbone.0.bias"], 0)', '["backbone.0.bias"])'),
    ("hidden = np.maximum(hidden @", "hidden = np.tanh(hidden @"),
    ('["backbone.2.bias"], 0)', '["backbone.2.bias"])'),
)
TWO_NETWORKS = (
    ("        self.actor =", "        self.critic_backbone = copy.deepcopy(self.backbone)\n        self.actor ="),
    ("values = self.critic(hidden)", "values = self.critic(self.critic_backbone(obs))"),
    ("import json\n", "import copy\nimport json\n"),
)
MEAN_AND_STD = (
    ("self.return_mean = nn", "self.obs_mean = nn.Buffer(torch.zeros(obs_space.shape))\n        self.return_mean = nn"),
    ("torch.asinh(obs / self", "torch.asinh((obs - self.obs_mean) / self"),
    ("np.arcsinh(obs / p", 'np.arcsinh((obs - p["obs_mean"]) / p'),
    (
        "        self.obs_count += (10 * (obs != 0).sum(0)).clamp(max=len(obs))\n"
        "        self.obs_rms.copy_((squares / self.obs_count).sqrt())\n",
        "        self.obs_count += len(obs)\n"
        "        weight = len(obs) / self.obs_count\n"
        "        delta = obs.mean(0) - self.obs_mean\n"
        "        variance = (1 - weight) * (self.obs_rms**2 + weight * delta**2) + weight * obs.var(0, correction=0)\n"
        "        self.obs_rms.copy_(torch.where(variance > 1e-8, variance.sqrt(), 1))\n"
        "        self.obs_mean += weight * delta\n",
    ),
)
NO_LIMIT = (("log_std.data.clamp_(min=", "log_std.data.clamp_(min=-99 + "),)  # of the noise of Box actions
TUTORIAL = (
    "--num-steps 2048 --num-minibatches 32 --update-epochs 10 --learning-rate 3e-4 --no-anneal-lr --gamma 0.99 "
    "--gae-lambda 0.95 --no-norm-adv --no-norm-value --no-norm-obs --ent-coef 0.01 --target-kl None --hidden-size 64 "
    "--vf-coef 0.5"
)
CHANGES = {  # variant: (flags, patch)
    "no value normalization": ("--no-norm-value", ()),
    "random first values": ("", (("1), gain=0)", "1), gain=1)"),)),
    "value weight 0.5": ("--vf-coef 0.5", ()),
    "truncation taken for termination": ("", (TERMINATED,)),
    "advantages normalized per minibatch": ("--no-norm-adv", MINIBATCH_ADVANTAGES),
    "constant learning rate": ("--no-anneal-lr", ()),
    "a KL stop of 0.02": ("--target-kl 0.02", ()),
    "observations not normalized": ("--no-norm-obs", ()),
    "outliers count fully": ("", ((".clamp(-limit, limit)", ""),)),
    "mean and standard deviation": ("", MEAN_AND_STD),
    "no limit of the noise": ("", NO_LIMIT),
    "two networks": ("", TWO_NETWORKS),
    "settings of the tutorial": (TUTORIAL, (TERMINATED, *MINIBATCH_ADVANTAGES, *TANH)),
}


def change(work, variant):
    flags, patch = CHANGES[variant]
    if work.script == "ppo_continuous.py":
        if variant == "settings of the tutorial":
            flags += " --log-std-init 0"
            patch += NO_LIMIT
    elif patch == NO_LIMIT:
        patch = ()
    return work._replace(seeds=range(1, 4), variant=variant, flags=flags.strip(), patch=patch)


if __name__ == "__main__":
    defaults = [work for work in WORKS if work.variant == "defaults" and work.script != "ppo_vector.py"]
    works = [change(work, variant) for work in defaults if work.env_id in ENV_IDS for variant in CHANGES]
    works += [change(work, "mean and standard deviation") for work in defaults if work.env_id not in ENV_IDS]
    run([work for work in works if work.flags or work.patch])
