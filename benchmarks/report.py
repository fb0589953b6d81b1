"""Write the tables of the READMEs from benchmarks/results/runs.csv; with --check fail where they differ.

python benchmarks/report.py
python benchmarks/report.py --check
"""

import math
import re
import statistics
import sys
from collections import defaultdict

from ablation import CHANGES, ENV_IDS
from grid import ROOT, THRESHOLDS, WORKS, read

RUNS = read("runs")
CURVES = defaultdict(list)  # (script, environment, variant, seed): [(step, mean of the last 20 episodes)]
for row in read("curves"):
    key = row["script"], row["env_id"], row["variant"], row["seed"]
    CURVES[key].append((int(row["step"]), float(row["mean_return_20"])))
PEERS = {"SB3": ("sb3_peer.py", "defaults"), "SB3, RL Zoo": ("sb3_peer.py", "zoo")}
CLEANRL = {"ppo_discrete.py": "ppo.py", "ppo_continuous.py": "ppo_continuous_action.py"}


def values(column, script, env_id, variant="defaults", seeds=None):
    """The column's values by seed, of some seeds or all; None where a run did not reach the threshold."""
    runs = [run for run in RUNS if (run["script"], run["env_id"], run["variant"]) == (script, env_id, variant)]
    runs = sorted((run for run in runs if seeds is None or run["seed"] in seeds), key=lambda run: int(run["seed"]))
    return [float(run[column]) if run[column] else None for run in runs]


def areas(script, env_id, variant="defaults", seeds=None):
    """Mean over seeds of the curve's mean over all steps, and over the second half of them."""
    keys = [key for key in CURVES if key[:3] == (script, env_id, variant) and (seeds is None or key[3] in seeds)]
    curves = [CURVES[key] for key in keys]
    curves = [[(step, value) for step, value in curve if not math.isnan(value)] for curve in curves]
    if not curves:
        return ""
    both = []
    for share in (0, 0.5):
        parts = [[value for step, value in curve if step >= share * curve[-1][0]] for curve in curves]
        both.append(statistics.mean(statistics.mean(part) for part in parts))
    return f"{both[0]:,.0f}; {both[1]:,.0f}"


def mean(numbers, width=True):
    """Mean and range over seeds."""
    if not numbers:
        return ""
    low, high, middle = (round(x, 1) + 0.0 for x in (min(numbers), max(numbers), statistics.mean(numbers)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})" if width else f"{middle:.1f}"


def median(numbers):
    """Median and range over seeds; a seed that did not reach the threshold counts as never."""
    if not numbers:
        return ""
    numbers = [float("inf") if x is None else x for x in numbers]
    low, high, middle = (
        f"{x:,.0f}" if x < float("inf") else "never" for x in (min(numbers), max(numbers), statistics.median(numbers))
    )
    return f"{middle} ({low} to {high})"


def verdict(ours, theirs):
    """ours against theirs: ahead, behind, or level within the standard error of the difference."""
    difference = statistics.mean(ours) - statistics.mean(theirs)
    error = math.sqrt(sum(statistics.variance(numbers) / len(numbers) for numbers in (ours, theirs)))
    return "level" if abs(difference) <= error else "ahead" if difference > 0 else "behind"


def compare(work, peer, variant):
    """Their mean, and how ours of the same environment stands to it; training episodes for CleanRL."""
    column = "last_20" if peer in CLEANRL.values() else "evaluation"
    theirs = values(column, peer, work.env_id, variant)
    if not theirs or work.steps not in [w.steps for w in WORKS if w.env_id == work.env_id and w.script in CLEANRL]:
        return ""
    ours = values(column, work.script, work.env_id, work.variant)
    if min(len(ours), len(theirs)) < 2:
        return mean(theirs, width=False)
    return f"{mean(theirs, width=False)}, {verdict(ours, theirs)}"


def table(header, rows):
    """A Markdown table without the columns that are empty in all rows."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[line[i] for i in kept] for line in (header, ["---"] * len(header), *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def results():
    rows = []
    for work in WORKS:
        score, steps = (values(name, work.script, work.env_id, work.variant) for name in ("evaluation", "solved_at"))
        name = work.env_id + (f", {work.variant}" if work.variant != "defaults" else "")
        row = [name, f"`{work.script}`", f"{work.steps:,}", str(len(score)), mean(score)]
        row.append(areas(work.script, work.env_id, work.variant))
        others = [*PEERS.values(), (CLEANRL.get(work.script), "defaults")]
        others = [compare(work, *peer) for peer in others]
        rows.append([*row, f"{THRESHOLDS[work.env_id]}: {median(steps)}", *others])
    header = ["environment", "script", "steps", "seeds", "greedy mean (range over seeds)"]
    header += ["area; second half", "mean to reach: median steps (range)"]
    return table([*header, *PEERS, "CleanRL"], rows)


def peers():
    """Greedy means and steps to the threshold, ours beside the peers'."""
    rows = []
    for env_id, script in {work.env_id: work.script for work in WORKS if work.script in CLEANRL}.items():
        ours = {"ours": (script, "defaults"), "ours, recipe": (script, "recipe")}
        others = PEERS | {"CleanRL": (CLEANRL[script], "defaults")}
        if not any(values("steps", name, env_id, variant) for name, variant in others.values()):
            continue
        for agent, (name, variant) in (ours | others).items():
            score = values("last_20" if agent == "CleanRL" else "evaluation", name, env_id, variant)
            if score:
                solved, seconds = (values(n, name, env_id, variant) for n in ("solved_at", "seconds_to_solved"))
                task = f"{env_id}, {THRESHOLDS[env_id]}"
                area = areas(name, env_id, variant)
                rows.append([task, agent, str(len(score)), mean(score), area, median(solved), median(seconds)])
    return table(["environment, threshold", "agent", "seeds", "mean", "area; second half", "steps", "seconds"], rows)


def ablations():
    """Area; second half; greedy mean of each change, and of the defaults on the seeds that all changes have."""
    columns = ["", "CartPole-v1, steps to 475"]
    rows = [["defaults"], *([variant] for variant in CHANGES)]
    for env_id in ENV_IDS:
        script = next(work.script for work in WORKS if work.env_id == env_id)
        found = [{run["seed"] for run in RUNS if run["variant"] == v and run["env_id"] == env_id} for v in CHANGES]
        seeds = set.intersection(*(s for s in found if s)) if any(found) else set()
        columns.append(f"{env_id}, {len(seeds)} seed{'s' * (len(seeds) != 1)}")
        for row, variant in zip(rows, ("defaults", *CHANGES), strict=True):
            if env_id == "CartPole-v1":
                row.append(median(values("solved_at", script, env_id, variant, seeds)))
            score = mean(values("evaluation", script, env_id, variant, seeds))
            row.append(score and f"{areas(script, env_id, variant, seeds)}; {score}")
    return table(columns, rows)


def vector_peers():
    """Steps per second of each side over the number of environments."""
    runs = read("vector_peers")
    speeds = {(run["env_id"], run["side"], run["environments"]): int(run["steps_per_second"]) for run in runs}
    sizes = [*dict.fromkeys(run["environments"] for run in runs)]
    sides = [*dict.fromkeys((run["env_id"], run["side"]) for run in runs)]
    rows = [[env_id, side, *(f"{speeds[env_id, side, n]:,}" for n in sizes)] for env_id, side in sides]
    return table(["environment", "side", *sizes], rows)


def vector_seconds():
    """Median steps and seconds of each side to the threshold, over the number of environments."""
    sides = {"ours": "ppo_vector.py", "SB3, DummyVecEnv": "sb3_peer.py", "CleanRL": "ppo.py"}
    sizes = (4, 16, 64)
    rows = []
    for env_id in ("CartPole-v1", "LunarLander-v3"):
        for side, script in sides.items():
            cells = []
            for n in sizes:
                steps, seconds = (
                    median(values(column, script, env_id, f"{n} environments"))
                    for column in ("solved_at", "seconds_to_solved")
                )
                cells.append(f"{steps}; {seconds} s" if steps and not steps.startswith("never") else steps)
            rows.append([f"{env_id}, {THRESHOLDS[env_id]}", side, *cells])
    return table(["environment, threshold", "side", *map(str, sizes)], rows)


def environments():
    """What each script does with each environment."""
    rows = read("environments")  # which also has the reasons
    return table([*rows[0]], [[cell.partition(":")[0] for cell in row.values()] for row in rows])


TABLES = {
    "README.md": {"results": results},
    "benchmarks/README.md": {
        "peers": peers,
        "ablations": ablations,
        "vector_peers": vector_peers,
        "vector_seconds": vector_seconds,
        "environments": environments,
    },
}


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
