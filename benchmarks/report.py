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
    return [float(run[column]) if run[column] else None for run in runs]


def mean(numbers, width=True):
    """Mean and range over seeds."""
    if not numbers:
        return ""
    low, high, middle = (round(x, 1) + 0.0 for x in (min(numbers), max(numbers), statistics.mean(numbers)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})" if width else f"{middle:.1f}"


def median(numbers):
    """Median and range over seeds; a seed that never came so far counts as the largest."""
    if not numbers:
        return ""
    shown = [f"{x:,.0f}" if x else "never" for x in sorted(numbers, key=lambda x: x or float("inf"))]
    return f"{shown[(len(shown) - 1) // 2]} ({shown[0]} to {shown[-1]})"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def results():
    rows = []
    for work in WORKS:
        score, steps = (values(name, work.script, work.env_id, work.variant) for name in ("evaluation", "solved_at"))
        name = work.env_id + (f", {work.variant}" if work.variant != "defaults" else "")
        seeds = str(len(score))
        rows.append([name, f"`{work.script}`", f"{work.steps:,}", seeds, mean(score), median(steps)])
    header = ["environment", "script", "steps", "seeds", "greedy mean (range)", "median steps to the threshold (range)"]
    return table(header, rows)


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
    rows = []
    for variant in ("defaults", *CHANGES):
        cells = []
        for env_id in ENV_IDS:
            script = next(work.script for work in WORKS if work.env_id == env_id)
            cells.append(mean(values("evaluation", script, env_id, variant)[:5]))
        script = "ppo_discrete.py"
        cells.insert(1, median(values("solved_at", script, "CartPole-v1", variant)[:5]))
        rows.append([variant, *cells])
    return table(["", "CartPole-v1", "steps to 475", *ENV_IDS[1:]], rows)


TABLES = {"README.md": {"results": results}, "benchmarks/README.md": {"peers": peers, "ablations": ablations}}


def main():
    for name, tables in TABLES.items():
        old = new = (ROOT / name).read_text()
        for marker, write in tables.items():
            new, found = re.subn(
                f"(?<=<!-- {marker} -->\n\n).*?(?=\n<!-- end -->)", lambda _, write=write: write(), new, flags=re.DOTALL
            )
            assert found == 1, f"{name} needs the lines <!-- {marker} --> and <!-- end -->"
        if "--check" not in sys.argv:
            (ROOT / name).write_text(new)
        elif new != old:
            sys.exit(f"{name} differs from benchmarks/results: run python benchmarks/report.py")


if __name__ == "__main__":
    main()
