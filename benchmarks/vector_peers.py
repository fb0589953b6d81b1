"""Steps per second of training by the same work beside the peers, over the number of environments.

    python benchmarks/vector_peers.py --sb3-python .sb3/bin/python --cleanrl ../cleanrl

Rollouts of 128 steps, 4 epochs of 4 minibatches, 64-64 networks; CleanRL's two networks are its own. Each round runs
every side once, in turns; a cell is the median of the rounds. "Alone" steps Gymnasium's synchronous environments by
random actions. Writes benchmarks/results/vector_peers.csv. On an otherwise idle machine.
"""

import argparse
import csv
import statistics
import time

import gymnasium as gym
from pairs import ROOT, run
from peers import absolute

SIZES = {1: 8_192, 4: 16_384, 16: 32_768, 64: 65_536}  # environments, steps
WORK = "--num-envs {n} --num-steps 128 --num-minibatches 4 --update-epochs 4 --total-timesteps {steps} --seed SEED"
OURS = f"ppo_vector.py --env-id {{env_id}} {WORK} --hidden-size 64 --eval-episodes 0"
SIDES = {
    "ours": OURS,
    "ours, sync": f"{OURS} --vectorization-mode sync",
    "SB3, DummyVecEnv": "sb3_peer.py dummy-{n} {env_id} SEED {steps}",
    "SB3, SubprocVecEnv": "sb3_peer.py subproc-{n} {env_id} SEED {steps}",
    "CleanRL": f"CLEANRL/ppo.py --env-id {{env_id}} {WORK} --no-cuda",
}


def alone(env_id, num_envs, seconds=2.0):
    envs = gym.make_vec(env_id, num_envs, "sync")
    envs.reset(seed=0)
    start = time.perf_counter()
    steps = 0
    while time.perf_counter() - start < seconds:
        envs.step(envs.action_space.sample())
        steps += num_envs
    return steps / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sb3-python", type=absolute, required=True)
    parser.add_argument("--cleanrl", type=absolute, required=True, help="a clone of CleanRL")
    parser.add_argument("--env-ids", nargs="+", default=["CartPole-v1", "LunarLander-v3"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log-dir", default="/tmp")
    args = parser.parse_args()
    rows = []
    for env_id in args.env_ids:
        for n, steps in SIZES.items():
            speeds = {side: [] for side in ("alone", *SIDES)}
            for seed in range(1, args.rounds + 1):
                speeds["alone"].append(alone(env_id, n))
                for side, words in SIDES.items():
                    words = words.format(env_id=env_id, n=n, steps=steps)
                    words = words.replace("CLEANRL", str(args.cleanrl / "cleanrl"))
                    speeds[side].append(run(words, str(seed), args.sb3_python, args.log_dir)[1])
            for side, values in speeds.items():
                rows.append((env_id, n, side, *map(round, (statistics.median(values), min(values), max(values)))))
                print(*rows[-1], flush=True)
    with open(ROOT / "benchmarks" / "results" / "vector_peers.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_id", "environments", "side", "steps_per_second", "lowest", "highest"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
