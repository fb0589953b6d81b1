"""Train Stable-Baselines3 and CleanRL at the steps of our defaults, five seeds, into benchmarks/results/runs.csv.

    python benchmarks/peers.py --sb3-python .sb3/bin/python
    python benchmarks/peers.py --cleanrl ../cleanrl --cleanrl-python .cleanrl/bin/python

SB3 runs by its defaults and by RL Zoo's tuned settings (sb3_peer.py). CleanRL runs its own files with their own
settings; they do not evaluate greedily, so what counts is the mean of the last 20 training episodes. The environments
of MuJoCo are trained by SB3's defaults alone: RL Zoo's settings are for other versions of them.
"""

import argparse
from pathlib import Path

from grid import ROOT, WORKS, Work, run

ENV_IDS = [*dict.fromkeys(work.env_id for work in WORKS)]
MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")


def absolute(path):
    return Path(path).absolute()


def cleanrl_command(args, work, seed):
    """The command line of one of CleanRL's own scripts, with Gymnasium 0.29."""
    old_id = work.env_id.replace("Lander-v3", "Lander-v2").replace("LanderContinuous-v3", "LanderContinuous-v2")
    words = [args.cleanrl_python, args.cleanrl / "cleanrl" / work.script, "--env-id", old_id, "--no-cuda"]
    return [*words, "--seed", seed, "--total-timesteps", work.steps]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sb3-python", type=absolute)
    parser.add_argument("--cleanrl", type=absolute, help="a clone of CleanRL")
    parser.add_argument("--cleanrl-python", type=absolute, help="Python with gymnasium 0.29")
    parser.add_argument("--env-ids", nargs="+", default=ENV_IDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    args = parser.parse_args()
    if not (args.sb3_python or (args.cleanrl and args.cleanrl_python)):
        parser.error("pass --sb3-python, or --cleanrl and --cleanrl-python")

    def sb3_command(work, seed, _folder):
        script = ROOT / "benchmarks" / work.script
        return [args.sb3_python, script, work.variant, work.env_id, seed, work.steps, "inf", 100]

    ours = [work for work in WORKS if work.env_id in args.env_ids and work.script != "ppo_vector.py"]
    ours = {work.env_id: work for work in ours}.values()  # a recipe has the environment and the steps of the defaults
    tuned = [work for work in ours if work.env_id not in MUJOCO]
    if args.sb3_python:
        works = [Work("sb3_peer.py", work.env_id, args.seeds, work.steps) for work in ours]
        works += [Work("sb3_peer.py", work.env_id, args.seeds, work.steps, "zoo") for work in tuned]
        run(works, sb3_command)
    if args.cleanrl:
        files = {"ppo_discrete.py": "ppo.py", "ppo_continuous.py": "ppo_continuous_action.py"}
        works = [Work(files[work.script], work.env_id, args.seeds, work.steps) for work in tuned]
        run(works, lambda work, seed, _folder: cleanrl_command(args, work, seed))


if __name__ == "__main__":
    main()
