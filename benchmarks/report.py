"""Write the tables of the READMEs from benchmarks/results/runs.csv; with --check fail where they differ.

python benchmarks/report.py
python benchmarks/report.py --check
"""

import re
import statistics
import sys

from ablation import CHANGES, ENV_IDS
from grid import ROOT, THRESHOLDS, WORKS, read

RUNS = read("runs")
PEERS = {"SB3": ("sb3_peer.py", "defaults"), "SB3, RL Zoo": ("sb3_peer.py", "zoo")}
CLEANRL = {"ppo_discrete.py": "ppo.py", "ppo_continuous.py": "ppo_continuous_action.py"}


def values(column, script, env_id, variant="defaults"):
    """The column's values over seeds; None where a run never came so far."""
    runs = [run for run in RUNS if (run["script"], run["env_id"], run["variant"]) == (script, env_id, variant)]
    runs.sort(key=lambda run: int(run["seed"]))
    return [float(run[column]) if run[column] else None for run in runs]


def mean(numbers, width=True):
    """Mean and range over seeds."""
    if not numbers:
        return ""
    low, high, middle = (round(x, 1) + 0.0 for x in (min(numbers), max(numbers), statistics.mean(numbers)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})" if width else f"{middle:.1f}"


def median(numbers):
    """Median and range over seeds; a seed that never came so far counts as infinite."""
    if not numbers:
        return ""
    numbers = [x or float("inf") for x in numbers]
    low, high, middle = (
        f"{x:,.0f}" if x < float("inf") else "never" for x in (min(numbers), max(numbers), statistics.median(numbers))
    )
    return f"{middle} ({low} to {high})"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def results():
    rows = []
    for work in WORKS:
        score, steps = (values(name, work.script, work.env_id, work.variant) for name in ("evaluation", "solved_at"))
        name = work.env_id + (", recipe" if work.variant == "recipe" else "")
        row = [name, f"`{work.script}`", f"{work.steps:,}", str(len(score)), mean(score)]
        others = [values("evaluation", script, work.env_id, variant) for script, variant in PEERS.values()]
        others.append(values("last_20", CLEANRL.get(work.script), work.env_id))
        others = [mean(other, width=False) if work.script in CLEANRL else "" for other in others]
        rows.append([*row, f"{THRESHOLDS[work.env_id]}: {median(steps)}", *others])
    header = ["environment", "script", "steps", "seeds", "greedy mean (range)", "median steps to a mean of (range)"]
    return table([*header, *PEERS, "CleanRL"], rows)


def peers():
    """Greedy means and steps to the threshold, ours beside the peers'."""
    rows = []
    for work in WORKS:
        if work.script == "ppo_vector.py" or not values("steps", "sb3_peer.py", work.env_id):
            continue
        agents = {"ours": (work.script, "defaults")} | PEERS | {"CleanRL": (CLEANRL[work.script], "defaults")}
        for agent, (script, variant) in agents.items():
            score = values("last_20" if agent == "CleanRL" else "evaluation", script, work.env_id, variant)
            if score:
                solved, seconds = (values(n, script, work.env_id, variant) for n in ("solved_at", "seconds_to_solved"))
                name = f"{work.env_id}, {THRESHOLDS[work.env_id]}"
                rows.append([name, agent, str(len(score)), mean(score), median(solved), median(seconds)])
    return table(["environment, threshold", "agent", "seeds", "mean", "steps", "seconds"], rows)


def ablations():
    """Greedy means of each change, and of the defaults on the same seeds."""
    rows = []
    scripts = {env_id: next(work.script for work in WORKS if work.env_id == env_id) for env_id in ENV_IDS}
    seeds = {e: min(len(values("steps", s, e, variant)) for variant in CHANGES) for e, s in scripts.items()}
    for variant in ("defaults", *CHANGES):
        cells = [mean(values("evaluation", s, e, variant)[: seeds[e]]) for e, s in scripts.items()]
        solved = median(values("solved_at", "ppo_discrete.py", "CartPole-v1", variant)[: seeds["CartPole-v1"]])
        rows.append([variant, cells[0], solved, *cells[1:]])
    names = [f"{env_id}, {seeds[env_id]} seeds" for env_id in ENV_IDS]
    return table(["", names[0], "steps to 475", *names[1:]], rows)


TABLES = {"README.md": {"results": results}, "benchmarks/README.md": {"peers": peers, "ablations": ablations}}


def main():
    for name, tables in TABLES.items():
        old = new = (ROOT / name).read_text()
        for marker, write in tables.items():
            block = f"(?<=<!-- {marker} -->\n\n).*?(?=\n<!-- end -->)"
            new, found = re.subn(block, lambda _, write=write: write(), new, count=1, flags=re.DOTALL)
            assert found, f"{name} needs the lines <!-- {marker} --> and <!-- end -->"
        if "--check" not in sys.argv:
            (ROOT / name).write_text(new)
        elif new != old:
            sys.exit(f"{name} differs from benchmarks/results: run python benchmarks/report.py")


if __name__ == "__main__":
    main()
