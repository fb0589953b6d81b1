"""Draw learning curves from benchmarks/results/NAME_curves.csv: the median over seeds, and their range as a band.

python benchmarks/plot.py benchmarks/results/learning_curves.png cartpole lunarlander
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
SOLVED = {"CartPole-v1": 475, "LunarLander-v3": 200, "LunarLanderContinuous-v3": 200}


def read(name):
    """{(script, environment): {seed: (steps, mean returns)}} of one CSV file."""
    curves = defaultdict(lambda: defaultdict(lambda: ([], [])))
    with open(RESULTS / f"{name}_curves.csv") as file:
        for row in csv.DictReader(file):
            steps, returns = curves[row["script"], row["env_id"]][row["seed"]]
            steps.append(float(row["step"]))
            returns.append(float(row["mean_return_20"]))
    return curves


def main(picture, *names):
    panels = [panel for name in names for panel in read(name).items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, ((script, env_id), seeds) in zip(axes[0], panels, strict=True):
        start, end = max(s[0][0] for s in seeds.values()), min(s[0][-1] for s in seeds.values())
        grid = np.linspace(start, end, 300)
        runs = np.array([np.interp(grid, *curve) for curve in seeds.values()])
        axis.fill_between(grid / 1000, runs.min(0), runs.max(0), alpha=0.25, linewidth=0)
        axis.plot(grid / 1000, np.median(runs, 0))
        if env_id in SOLVED:
            axis.axhline(SOLVED[env_id], color="grey", linestyle=":", linewidth=1)
        axis.set_title(f"{env_id}, {len(seeds)} seeds", fontsize=10)
        axis.set_xlabel(f"thousand environment steps ({script})", fontsize=9)
        axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("mean return of the last 20 episodes", fontsize=9)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
