"""Draw benchmarks/results/learning_curves.png and ablation.png from curves.csv: medians over seeds, ranges as bands.

python benchmarks/plot.py
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ablation import CHANGES, ENV_IDS
from grid import RESULTS, THRESHOLDS, WORKS
from report import CLEANRL, CURVES, PEERS


def draw(axis, key, label, band=True):
    """The median over seeds, from where every seed has a value. A key without runs uses up its color."""
    runs = [np.array(curve) for (*found, _seed), curve in CURVES.items() if (*found,) == key]
    runs = [run[~np.isnan(run[:, 1])] for run in runs]
    if not runs:
        axis.plot([], [])
        return
    grid = np.linspace(max(run[0, 0] for run in runs), min(run[-1, 0] for run in runs), 300)
    returns = np.array([np.interp(grid, run[:, 0], run[:, 1]) for run in runs])
    (line,) = axis.plot(grid / 1000, np.median(returns, 0), label=label, linewidth=1.8 if band else 1.1)
    if band:
        axis.fill_between(grid / 1000, returns.min(0), returns.max(0), alpha=0.25, linewidth=0, color=line.get_color())


def panels(works, columns):
    rows = -(-len(works) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(works) :]:
        axis.set_axis_off()
    for axis, work in zip(axes.flat, works, strict=False):
        axis.axhline(THRESHOLDS[work.env_id], color="grey", linestyle=":", linewidth=1)
        variant = f", {work.variant}" if work.variant != "defaults" else ""
        axis.set_title(f"{work.env_id}, {work.script.removesuffix('.py')}{variant}", fontsize=7)
        axis.set_xlabel("thousand environment steps", fontsize=7)
        axis.grid(alpha=0.2)
        axis.tick_params(labelsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("mean of 20 episodes", fontsize=8)
    return figure, axes.flat


def save(figure, axis, name):
    handles, labels = axis.get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(RESULTS / name, dpi=100)


def main():
    figure, axes = panels(WORKS, 4)
    for axis, work in zip(axes, WORKS, strict=False):
        draw(axis, (work.script, work.env_id, work.variant), "this project, median and range over seeds")
        if work.script != "ppo_vector.py":
            for name, (script, variant) in PEERS.items():
                draw(axis, (script, work.env_id, variant), name, band=False)
            draw(axis, (CLEANRL[work.script], work.env_id, "defaults"), "CleanRL", band=False)
    save(figure, axes[0], "learning_curves.png")

    works = [next(work for work in WORKS if work.env_id == env_id) for env_id in ENV_IDS]
    figure, axes = panels(works, 4)
    for axis, work in zip(axes, works, strict=True):
        draw(axis, (work.script, work.env_id, "defaults"), "defaults")
        for variant in CHANGES:
            draw(axis, (work.script, work.env_id, variant), variant, band=False)
    save(figure, axes[0], "ablation.png")


if __name__ == "__main__":
    main()
