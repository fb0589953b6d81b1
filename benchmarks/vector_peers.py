"""Steps per second of training by the same work beside the peers, over the number of environments.

    python benchmarks/vector_peers.py --sb3-python .sb3/bin/python --cleanrl ../cleanrl
    python benchmarks/vector_peers.py --sb3-python .sb3/bin/python --cleanrl ../cleanrl \\
        --cleanrl-python .cleanrl/bin/python --to-threshold

Rollouts of 128 steps, 4 epochs of 4 minibatches, 64-64 networks; CleanRL's two networks are its own. Each round runs
every side once, in turns; a cell is the median of the rounds. "Alone" steps Gymnasium's synchronous environments by
random actions. Writes benchmarks/results/vector_peers.csv. On an otherwise idle machine.

With --to-threshold each side trains until its mean of 20 episodes reaches the threshold, into runs.csv: ours by its
defaults, SB3 by the work above, which is that of CleanRL's defaults, on a shared network of ours, CleanRL by its own.
"""

import argparse
import statistics
import sys
import time

import grid
import gymnasium as gym
import numpy as np
from grid import ROOT
from pairs import run
from peers import absolute, cleanrl_command

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


def alone(env_id, num_envs, mode, seconds=2.0):
    """Steps per second of environments with random actions and no wrapper of ours; a reset is not a step."""
    envs = gym.make_vec(env_id, num_envs, mode)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(envs.single_action_space.n, size=(100, num_envs))
    done = np.zeros(num_envs, bool)
    steps = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for action in actions:
            steps += num_envs - int(done.sum())
            _, _, terminated, truncated, _ = envs.step(action)
            done = terminated | truncated
    spent = time.perf_counter() - start
    envs.close()
    return steps / spent


def to_threshold(args):
    """Train to the threshold by 4, 16 and 64 environments, two runs at a time."""
    ends = {f"{n} environments": n for n in (4, 16, 64)}

    def sb3_command(work, seed, _folder):
        words = [args.sb3_python, ROOT / "benchmarks" / work.script, f"dummy-{ends[work.variant]}", work.env_id]
        return [*words, seed, work.steps, grid.THRESHOLDS[work.env_id]]

    def peer_command(work, seed, _folder):
        return [*cleanrl_command(args, work, seed), "--num-envs", ends[work.variant]]

    ours = []
    for env_id in args.env_ids:
        steps = next(w.steps for w in grid.WORKS if (w.script, w.env_id) == (grid.V, env_id))
        for variant, n in ends.items():
            flags = f"--num-envs {n} --target-return {grid.THRESHOLDS[env_id]} --eval-episodes 0"
            ours.append(grid.Work(grid.V, env_id, range(1, args.rounds + 1), steps, variant, flags))
    grid.run(ours)
    grid.run([work._replace(script="sb3_peer.py", flags="") for work in ours], sb3_command)
    grid.run([work._replace(script="ppo.py", flags="") for work in ours], peer_command)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sb3-python", type=absolute, required=True)
    parser.add_argument("--cleanrl", type=absolute, required=True, help="a clone of CleanRL")
    parser.add_argument("--env-ids", nargs="+", default=["CartPole-v1", "LunarLander-v3"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log-dir", default="/tmp")
    parser.add_argument("--to-threshold", action="store_true")
    parser.add_argument("--cleanrl-python", type=absolute, default=sys.executable, help="Python with gymnasium 0.29")
    args = parser.parse_args()
    if args.to_threshold:
        return to_threshold(args)
    rows = []
    for env_id in args.env_ids:
        for n, steps in SIZES.items():
            speeds = {side: [] for side in ("alone", *SIDES)}
            for seed in range(1, args.rounds + 1):
                speeds["alone"].append(alone(env_id, n, "sync"))
                for side, words in SIDES.items():
                    words = words.format(env_id=env_id, n=n, steps=steps)
                    words = words.replace("CLEANRL", str(args.cleanrl / "cleanrl"))
                    speeds[side].append(run(words, str(seed), args.sb3_python, args.log_dir)[1])
            for side, values in speeds.items():
                rows.append((env_id, n, side, *map(round, (statistics.median(values), min(values), max(values)))))
                print(*rows[-1], flush=True)
    header = ["env_id", "environments", "side", "steps_per_second", "lowest", "highest"]
    grid.write("vector_peers", header, rows)


if __name__ == "__main__":
    main()
