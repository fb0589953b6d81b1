"""What each decision is worth: train the defaults with one of them changed, into benchmarks/results/runs.csv.

python benchmarks/ablation.py
"""

from grid import WORKS, run

BASE = "earlier defaults"  # what the changes in runs.csv were made to; after a new run: "defaults"
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
    "observation normalization switched": ("--norm-obs", ()),
    "two networks": ("", TWO_NETWORKS),
    "settings of the tutorial": (TUTORIAL, (TERMINATED, *MINIBATCH_ADVANTAGES, *TANH)),
}


def change(work, variant):
    flags, patch = CHANGES[variant]
    if work.script == "ppo_continuous.py":
        flags = "--no-norm-obs" if flags == "--norm-obs" else flags
        flags += " --log-std-init 0" * (variant == "settings of the tutorial")
    return work._replace(seeds=range(1, 6), variant=variant, flags=flags.strip(), patch=patch)


if __name__ == "__main__":
    bases = [work for work in WORKS if work.env_id in ENV_IDS and work.script != "ppo_vector.py"]
    works = [change(work, variant) for work in bases for variant in CHANGES]
    run([work for work in works if work.flags or work.patch])
