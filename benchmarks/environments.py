"""Try each script on every environment that Gymnasium can make here, into benchmarks/results/environments.csv.

    python benchmarks/environments.py

Each script trains two iterations, resumes for two more, and plays a greedy episode by --evaluate.
"""

import contextlib
import csv
import io
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import gymnasium as gym
from grid import RESULTS, ROOT

sys.path.insert(0, str(ROOT))
SCRIPTS = ("ppo_discrete", "ppo_continuous", "ppo_vector")


def newest():
    """The newest version of each environment in the registry."""
    versions = {}
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.version or 0):
        versions[spec.namespace, spec.name] = spec
    return sorted(versions.values(), key=lambda spec: spec.id)


def outcome(script, spec):
    """What happened, in a few words."""
    with tempfile.TemporaryDirectory() as folder:
        common = {"env_id": spec.id, "log_dir": folder, "hidden_size": 8, "eval_episodes": 0, "num_steps": 32}
        args = script.Args(**common, num_minibatches=2, norm_obs=False, total_timesteps=2)
        args.total_timesteps = 2 * 32 * getattr(args, "num_envs", 1)
        try:
            script.train(args)
        except ValueError as error:
            reason, hint, _ = str(error).partition(" (if in a module")
            return f"not installed: {reason}" if hint else f"refused: {reason}"
        except ImportError as error:
            return f"not installed: {error}"
        (checkpoint,) = Path(folder).glob("*/checkpoint.pt")
        args.resume = str(checkpoint)
        args.total_timesteps *= 2
        script.train(args)
        native = script.__name__ == "ppo_vector" and spec.vector_entry_point is not None
        if spec.max_episode_steps is None and spec.name != "Blackjack":  # its episodes may never end
            return "trained, not evaluated"
        evaluation = [sys.executable, f"{script.__name__}.py", "--evaluate", str(checkpoint), "--eval-episodes", "1"]
        subprocess.run(evaluation, cwd=ROOT, capture_output=True, check=True)
        return "trained, native vector form" if native else "trained"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with (RESULTS / "environments.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_id", *SCRIPTS])
        for spec in newest():
            with contextlib.redirect_stdout(io.StringIO()):
                row = [spec.id, *(outcome(__import__(name), spec) for name in SCRIPTS)]
            writer.writerow(row)
            file.flush()
            print(*row, sep=" | ")
