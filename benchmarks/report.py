"""Write the README's table of results from benchmarks/results/*.csv; with --check fail where the two differ.

python benchmarks/report.py
python benchmarks/report.py --check
"""

import csv
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "| environment | script | training steps | seeds | result | range over seeds |\n|---|---|---|---|---|---|\n"
ROWS = {  # name of a CSV file, and what to call it
    "cartpole_solved": "CartPole-v1, solved at 475",
    "lunarlander_solved": "LunarLander-v3, solved at 200",
    "vector_cartpole": "CartPole-v1, solved at 475",
    "cartpole": "CartPole-v1",
    "acrobot": "Acrobot-v1",
    "lunarlander": "LunarLander-v3",
    "pendulum": "Pendulum-v1",
    "lunarlandercontinuous": "LunarLanderContinuous-v3",
    "mountaincar": "MountainCarContinuous-v0",
    "mountaincar_entropy": "MountainCarContinuous-v0, recipe",
    "bipedalwalker": "BipedalWalker-v3, recipe",
    "halfcheetah": 'HalfCheetah-v5 (`pip install "gymnasium[mujoco]"`)',
    "vector_lunarlander": "LunarLander-v3",
    "vector_bipedalwalker": "BipedalWalker-v3, recipe",
}


def row(name, label):
    """One line of the table: the median step at which seeds are solved, or the mean of their evaluations."""
    with open(ROOT / "benchmarks" / "results" / f"{name}.csv") as file:
        runs = [*csv.DictReader(file)]
    flags = runs[0]["flags"]
    if "--target-return" in flags:
        steps = "until solved"
        values = [int(run["solved_at"]) for run in runs]  # an error if a seed was not solved
        result, width = f"median step {statistics.median(values):,.0f}", f"{min(values):,} to {max(values):,}"
    else:
        found = re.search(r"--total-timesteps (\d+)", flags)
        steps = f"{int(found[1]) if found else 100_000:,}"
        values = [float(run["evaluation"]) for run in runs]
        result, width = f"mean {statistics.mean(values):.1f}", f"{round(min(values), 1) + 0.0:.1f} to {max(values):.1f}"
    return f"| {label} | `{runs[0]['script']}` | {steps} | {len(runs)} | {result} | {width} |\n"


def main():
    readme = (ROOT / "README.md").read_text()
    start = readme.index(HEADER)
    end = readme.index("\n\n", start) + 1
    table = HEADER + "".join(row(name, label) for name, label in ROWS.items())
    if "--check" not in sys.argv:
        (ROOT / "README.md").write_text(readme[:start] + table + readme[end:])
    elif readme[start:end] != table:
        sys.exit("README.md differs from benchmarks/results: run python benchmarks/report.py")


if __name__ == "__main__":
    main()
