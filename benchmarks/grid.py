"""Train the rows of the README's table, one run a core: benchmarks/results/runs.csv and curves.csv.

    python benchmarks/grid.py
    python benchmarks/grid.py Pendulum-v1 LunarLander-v3

A run that is in runs.csv with the same flags is skipped, so a grid that was stopped goes on. To run one again, delete
its rows in both files.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
THRESHOLDS = {  # a mean of 20 episodes that counts as solved
    "CartPole-v1": 475,
    "Acrobot-v1": -100,
    "MountainCar-v0": -110,
    "LunarLander-v3": 200,
    "Pendulum-v1": -200,
    "MountainCarContinuous-v0": 90,
    "LunarLanderContinuous-v3": 200,
    "BipedalWalker-v3": 250,
    "HalfCheetah-v5": 4000,
    "Hopper-v5": 2000,
    "Walker2d-v5": 2000,
}
STATUS = re.compile(r"step (\d+)  mean return (\S+)  (\d+) steps/s")
CLEANRL = re.compile(r"global_step=(\d+), episodic_return=\[?([-\d.]+)")
EVALUATION = re.compile(r"evaluation: mean return (\S+) \+/- (\S+)")
VERSIONS = (
    "import platform, gymnasium, torch; print('python', platform.python_version(), 'gymnasium', gymnasium.__version__, "
    "'torch', torch.__version__.split('+')[0])"
)


class Work(NamedTuple):
    """One row of a table: what to train, on which seeds."""

    script: str
    env_id: str
    seeds: range
    steps: int
    variant: str = "defaults"
    flags: str = ""
    patch: tuple = ()  # pairs of (text of the script, other text)


D = "ppo_discrete.py"
C = "ppo_continuous.py"
V = "ppo_vector.py"
CAR = "--log-std-init 1 --ent-coef 0.01 --gamma 0.99"
BOX = "--num-envs 2 --num-steps 1024 --num-minibatches 8 --update-epochs 10 --learning-rate 7e-4 --hidden-size 128"
WORKS = [
    Work(D, "CartPole-v1", range(1, 11), 100_000),
    Work(V, "CartPole-v1", range(1, 11), 100_000),
    Work(D, "Acrobot-v1", range(1, 11), 200_000),
    Work(D, "MountainCar-v0", range(1, 6), 500_000),
    Work(D, "MountainCar-v0", range(1, 6), 500_000, "recipe", "--num-steps 4096 --num-minibatches 16"),
    Work(D, "LunarLander-v3", range(1, 11), 300_000),
    Work(V, "LunarLander-v3", range(1, 11), 500_000),
    Work(C, "Pendulum-v1", range(1, 11), 100_000),
    Work(V, "Pendulum-v1", range(1, 11), 100_000),
    Work(V, "Pendulum-v1", range(1, 11), 100_000, "recipe", BOX),
    Work(C, "MountainCarContinuous-v0", range(1, 6), 100_000),
    Work(C, "MountainCarContinuous-v0", range(1, 6), 100_000, "recipe", CAR),
    Work(C, "LunarLanderContinuous-v3", range(1, 11), 300_000),
    Work(V, "LunarLanderContinuous-v3", range(1, 11), 300_000),
    Work(V, "LunarLanderContinuous-v3", range(1, 11), 300_000, "recipe", BOX),
    Work(C, "BipedalWalker-v3", range(1, 11), 1_000_000),
    Work(V, "BipedalWalker-v3", range(1, 11), 1_000_000, "recipe", BOX),
    Work(C, "HalfCheetah-v5", range(1, 6), 1_000_000),
    Work(V, "HalfCheetah-v5", range(1, 6), 1_000_000),
    Work(V, "HalfCheetah-v5", range(1, 6), 1_000_000, "recipe", BOX),
    Work(C, "Hopper-v5", range(1, 6), 1_000_000),
    Work(C, "Walker2d-v5", range(1, 6), 1_000_000),
]


def our_command(work, seed, folder):
    """The command line of one run. The script is patched in a copy."""
    text = (ROOT / work.script).read_text()
    for old, new in work.patch:
        if text.count(old) != 1:
            raise ValueError(f"{work.script} does not contain exactly once: {old}")
        text = text.replace(old, new)
    (folder / work.script).write_text(text)
    words = [sys.executable, work.script, "--env-id", work.env_id, "--seed", seed]
    return [*words, "--total-timesteps", work.steps, "--eval-episodes", 100, *work.flags.split()]


def train(work, seed, make_command):
    """Train once. Returns a row of runs.csv and rows of curves.csv."""
    commit = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        words = [str(word) for word in make_command(work, seed, Path(folder))]
        options = {"cwd": folder, "env": ENVIRONMENT, "text": True}
        versions = subprocess.run([words[0], "-c", VERSIONS], **options, capture_output=True, check=True).stdout.strip()
        start = time.perf_counter()
        curve = []
        last_20 = []
        solved = None
        evaluation = ("", "")
        output = []
        process = subprocess.Popen(words, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in process.stdout:
            output = [*output[-20:], line]
            status = STATUS.search(line)
            episode = CLEANRL.search(line)
            if greedy := EVALUATION.search(line):
                evaluation = greedy.groups()
            if status:
                step = int(status[1])
                mean = float(status[2])
            elif episode:  # CleanRL prints episodes
                step = int(episode[1])
                last_20 = [*last_20, float(episode[2])][-20:]
                mean = sum(last_20) / len(last_20)
            else:
                continue
            if solved is None and mean >= THRESHOLDS[work.env_id] and len(last_20) in (0, 20):
                solved = step, round(time.perf_counter() - start, 2)
            if not curve or step >= curve[-1][0] + 1000:
                curve.append((step, round(mean, 2)))
            trained = step, mean, time.perf_counter() - start
        if process.wait():
            raise RuntimeError(f"{work.script} {work.env_id} seed {seed} failed:\n{''.join(output)}")
    row = key(work, seed) | {
        "flags": work.flags,
        "steps": trained[0],
        "evaluation": evaluation[0],
        "evaluation_std": evaluation[1],
        "last_20": round(trained[1], 2),
        "solved_at": solved[0] if solved else "",
        "seconds_to_solved": solved[1] if solved else "",  # since the process started
        "seconds": round(trained[2], 1),  # of training, with imports
        "versions": versions,
        "commit": commit,
    }
    return row, [key(work, seed) | {"step": step, "mean_return_20": mean} for step, mean in curve]


def key(work, seed):
    return {"script": work.script, "variant": work.variant, "env_id": work.env_id, "seed": str(seed)}


def read(name):
    path = RESULTS / f"{name}.csv"
    return [*csv.DictReader(path.open())] if path.exists() else []


def append(name, rows):
    path = RESULTS / f"{name}.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        if new:
            writer.writeheader()
        writer.writerows(rows)


def write(name, header, rows):
    """Write benchmarks/results/NAME.csv."""
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def run(works, make_command=our_command):
    """Train all that is not in runs.csv yet, first seeds first, and append each run as it ends."""
    done = [
        ({name: row[name] for name in ("script", "variant", "env_id", "seed")}, row["flags"]) for row in read("runs")
    ]
    pairs = [(work, seed) for work in works for seed in work.seeds if (key(work, seed), work.flags) not in done]
    pairs.sort(key=lambda pair: pair[1])
    lock = Lock()

    def one(work, seed):
        row, curve = train(work, seed, make_command)
        with lock:
            append("curves", curve)
            append("runs", [row])
            print(*row.values(), flush=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for task in as_completed([pool.submit(one, *pair) for pair in pairs]):
                task.result()
        except BaseException:  # an error or Ctrl-C: begin no other run
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    if unknown := {*sys.argv[1:]} - {work.env_id for work in WORKS}:
        sys.exit(f"no such environment in WORKS: {', '.join(unknown)}")
    run([work for work in WORKS if not sys.argv[1:] or work.env_id in sys.argv[1:]])
