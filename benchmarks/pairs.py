"""Time a script against Stable-Baselines3, in pairs run one after the other on an otherwise idle machine.

    python benchmarks/pairs.py solved --sb3-python .sb3/bin/python
    python benchmarks/pairs.py speed --sb3-python .sb3/bin/python
    python benchmarks/pairs.py speed_continuous --sb3-python .sb3/bin/python
    python benchmarks/pairs.py speed_vector --sb3-python .sb3/bin/python

`solved` compares seconds from process start to a 20-episode mean of 475 on CartPole, the others training steps per
second at the same work. SB3 needs a virtual environment of its own (requirements.txt). Writes
benchmarks/results/pairs_NAME.csv and prints the median ratio.
"""

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARTPOLE, LANDER = "--env-id CartPole-v1", "--env-id LunarLanderContinuous-v3"
SAME = "--num-steps 2048 --num-minibatches 8 --update-epochs 10 --target-kl None --eval-episodes 0"
VECTOR = "--num-envs 4 --num-steps 128 --num-minibatches 4 --update-epochs 4 --eval-episodes 0"
WORK = {  # arguments of our script, and of sb3_peer.py with SEED for the seed
    "solved": (f"ppo_discrete.py {CARTPOLE} --target-return 475 --eval-episodes 0", "zoo CartPole-v1 SEED 100000 475"),
    "speed": (f"ppo_discrete.py {CARTPOLE} {SAME}", "same CartPole-v1 SEED 30000"),
    "speed_continuous": (f"ppo_continuous.py {LANDER} {SAME}", "same LunarLanderContinuous-v3 SEED 20000"),
    "speed_vector": (f"ppo_vector.py {CARTPOLE} {VECTOR}", "vector CartPole-v1 SEED 30000"),
}


def run(command, log_dir):
    """Run a command; returns its wall-clock seconds and its last steps per second."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=log_dir, env=environment, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - start, float(re.findall(r"(\d+) steps/s", output)[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=WORK)
    parser.add_argument("--sb3-python", required=True, type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--log-dir", default="/tmp")
    args = parser.parse_args()
    ours, theirs = (words.split() for words in WORK[args.name])
    rows = []
    for seed in range(1, args.pairs + 1):
        peer = [str(seed) if word == "SEED" else word for word in theirs]
        a = run([sys.executable, ROOT / ours[0], *ours[1:], "--seed", str(seed)], args.log_dir)
        b = run([args.sb3_python.absolute(), ROOT / "benchmarks" / "sb3_peer.py", *peer], args.log_dir)
        ratio = a[0] / b[0] if args.name == "solved" else a[1] / b[1]
        rows.append((seed, round(a[0], 2), a[1], round(b[0], 2), b[1], round(ratio, 3)))
        print("seed {}: ours {} s {} steps/s, SB3 {} s {} steps/s, ratio {}".format(*rows[-1]), flush=True)
    with open(ROOT / "benchmarks" / "results" / f"pairs_{args.name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "seconds", "steps_per_second", "sb3_seconds", "sb3_steps_per_second", "ratio"])
        writer.writerows(rows)
    print(f"median ratio {statistics.median(row[-1] for row in rows):.3f}")


if __name__ == "__main__":
    main()
