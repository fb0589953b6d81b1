"""Train a script on environments x seeds, one process a core, and keep what TensorBoard recorded as CSV.

    python benchmarks/grid.py cartpole ppo_discrete.py --env-ids CartPole-v1 --seeds 1 2 3 -- --total-timesteps 100000

What stands behind `--` goes to the script. Writes benchmarks/results/NAME.csv, one row a run, and
benchmarks/results/NAME_curves.csv, the 20-episode mean return over steps, and prints a summary of each environment.
"""

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def run(script, env_id, seed, flags, processes, log_dir):
    """Train once. Returns the row of results and the curve as rows of (step, mean return)."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, ROOT / script, "--env-id", env_id, "--seed", str(seed), "--log-dir", log_dir]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"{script} {env_id} seed {seed} failed:\n{result.stderr}")
    solved = re.search(r"solved: .* at step (\d+)", result.stdout)
    evaluation = re.search(r"evaluation: mean return (\S+) \+/- (\S+)", result.stdout)
    folder = Path(re.search(r"checkpoint: (.*)", result.stdout)[1]).parent
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    speed, curve = events.Scalars("charts/SPS")[-1], events.Scalars("charts/episodic_return_20")
    row = {
        "script": script,
        "env_id": env_id,
        "seed": seed,
        "flags": " ".join(flags),
        "steps": speed.step,
        "solved_at": int(solved[1]) if solved else "",
        "evaluation": float(evaluation[1]) if evaluation else "",
        "evaluation_std": float(evaluation[2]) if evaluation else "",
        "last_20": round(curve[-1].value, 2),
        "steps_per_second": round(speed.value),
    }
    return row, [(script, env_id, seed, point.step, round(point.value, 2)) for point in curve]


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("script")
    parser.add_argument("--env-ids", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--processes", type=int, default=1, help="processes of each run, by torchrun")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, flags = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]

    with tempfile.TemporaryDirectory() as log_dir, ThreadPoolExecutor(args.jobs) as pool:
        tasks = [
            pool.submit(run, args.script, env_id, seed, flags, args.processes, log_dir)
            for env_id in args.env_ids
            for seed in args.seeds
        ]
        rows, curves = zip(*(task.result() for task in tasks), strict=True)
    write(RESULTS / f"{args.name}.csv", rows[0].keys(), [row.values() for row in rows])
    header = ["script", "env_id", "seed", "step", "mean_return_20"]
    write(RESULTS / f"{args.name}_curves.csv", header, [point for curve in curves for point in curve])

    for env_id in args.env_ids:
        for column in "solved_at", "evaluation", "steps_per_second":
            values = sorted(row[column] for row in rows if row["env_id"] == env_id and row[column] != "")
            if values:
                mean, median = statistics.mean(values), statistics.median(values)
                count = f"{len(values)} of {len(args.seeds)} runs"
                print(f"{env_id} {column}: mean {mean:.1f} median {median:.1f} [{values[0]} .. {values[-1]}] {count}")


if __name__ == "__main__":
    main()
