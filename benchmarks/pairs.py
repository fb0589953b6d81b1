"""Time two commands in pairs, run one after the other on an otherwise idle machine.

    python benchmarks/pairs.py solved --sb3-python .sb3/bin/python
    python benchmarks/pairs.py torchrun
    python benchmarks/pairs.py envpool_LunarLander-v3_16

`solved` and `solved_vector` compare seconds from process start to a 20-episode mean of 475 on CartPole, the others
training steps per second. SB3 needs a virtual environment of its own (requirements.txt). Writes
benchmarks/results/pairs_NAME.csv and prints the median ratio.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

from grid import ENVIRONMENT, ROOT, write
from peers import absolute

CARTPOLE = "--env-id CartPole-v1"
LANDER = "--env-id LunarLanderContinuous-v3"
SOLVE = f"{CARTPOLE} --target-return 475 --eval-episodes 0 --seed SEED"
SAME = "--num-steps 2048 --num-minibatches 8 --update-epochs 10 --hidden-size 64 --target-kl None --eval-episodes 0"
CLEANRL = "--num-envs 4 --num-steps 128 --num-minibatches 4 --update-epochs 4 --eval-episodes 0"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2"
DISTRIBUTED = "ppo_vector.py --env-id LunarLander-v3 --eval-episodes 0 --seed SEED --total-timesteps"
WORK = {  # what is measured, and against what; sb3_peer.py runs in SB3's environment
    "solved": (f"ppo_discrete.py {SOLVE}", "sb3_peer.py zoo CartPole-v1 SEED 100000 475"),
    "solved_vector": (f"ppo_vector.py {SOLVE}", f"ppo_discrete.py {SOLVE}"),
    "speed": (f"ppo_discrete.py {CARTPOLE} {SAME} --seed SEED", "sb3_peer.py same CartPole-v1 SEED 30000"),
    "speed_continuous": (
        f"ppo_continuous.py {LANDER} {SAME} --seed SEED",
        "sb3_peer.py same LunarLanderContinuous-v3 SEED 20000",
    ),
    "speed_vector": (f"ppo_vector.py {CARTPOLE} {CLEANRL} --seed SEED", "sb3_peer.py dummy-4 CartPole-v1 SEED 30000"),
    "torchrun": (f"{TORCHRUN} {DISTRIBUTED} 200000", f"{DISTRIBUTED} 100000"),
    "torchrun_256": (f"{TORCHRUN} {DISTRIBUTED} 400000 --num-steps 256", f"{DISTRIBUTED} 200000 --num-steps 256"),
}
for num_envs in (16, 64):  # EnvPool's engine against Gymnasium's environments, by the same training
    for task in ("LunarLander-v3", "BipedalWalker-v3", "HalfCheetah-v5"):
        sizes = f"--num-envs {num_envs} --total-timesteps 65536 --eval-episodes 0 --seed SEED"
        WORK[f"envpool_{task}_{num_envs}"] = (
            f"ppo_vector.py --env-id envpool_envs:EnvPool/{task} {sizes}",
            f"ppo_vector.py --env-id {task} {sizes}",
        )


def run(words, seed, sb3_python, log_dir):
    """Run a command; returns its wall-clock seconds and its last steps per second."""
    python, folder = (sb3_python, ROOT / "benchmarks") if "sb3_peer.py" in words else (sys.executable, ROOT)
    words = [str(folder / word) if word.endswith(".py") else word for word in words.replace("SEED", seed).split()]
    environment = ENVIRONMENT | {"PYTHONPATH": ROOT / "benchmarks"}
    start = time.perf_counter()
    done = subprocess.run([python, *words], cwd=log_dir, env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, float("".join(re.findall(r"(\d+) steps/s|SPS: (\d+)", done.stdout)[-1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=WORK)
    parser.add_argument("--sb3-python", type=absolute)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--log-dir", default="/tmp")
    args = parser.parse_args()
    if "sb3_peer.py" in WORK[args.name][1] and not args.sb3_python:
        parser.error(f"{args.name} needs --sb3-python")
    rows = []
    for seed in range(1, args.pairs + 1):
        a, b = (run(words, str(seed), args.sb3_python, args.log_dir) for words in WORK[args.name])
        ratio = a[0] / b[0] if args.name.startswith("solved") else a[1] / b[1]
        rows.append((seed, round(a[0], 2), a[1], round(b[0], 2), b[1], round(ratio, 3)))
        print("seed {}: {} s {} steps/s, against {} s {} steps/s, ratio {}".format(*rows[-1]), flush=True)
    header = ["seed", "seconds", "steps_per_second", "other_seconds", "other_steps_per_second", "ratio"]
    write(f"pairs_{args.name}", header, rows)
    print(f"median ratio {statistics.median(row[-1] for row in rows):.3f}")


if __name__ == "__main__":
    main()
