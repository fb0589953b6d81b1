"""Kill each script at random moments and resume it. Run by hand; 50 kills of a script take seven minutes.

    python tests/kills.py 50

After each kill the checkpoint must load, and its resumption must go on from its step to the end.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
FLAGS = "--total-timesteps 500000 --num-steps 64 --num-minibatches 2 --checkpoint-interval 1 --eval-episodes 2"


def start(script, folder, *flags):
    command = [sys.executable, str(TESTS.parent / f"{script}.py"), *flags]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def survives(script, env_id, delay):
    """Whether a run killed so many seconds after its first checkpoint leaves one that goes on to the end."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(script, folder, "--env-id", env_id, *FLAGS.split())
        paths = []
        while not paths:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
            paths = [*Path(folder).glob("runs/*/checkpoint.pt")]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        step = torch.load(paths[0])["step"]
        resumed = start(script, folder, "--resume", str(paths[0]), "--total-timesteps", str(step + 256))
        _, errors = resumed.communicate()
        return resumed.returncode == 0 and torch.load(paths[0])["step"] >= step + 256 and not errors


def main(kills):
    random.seed(1)
    for script, family in {"ppo_discrete": "Discrete", "ppo_continuous": "Box", "ppo_vector": "Discrete"}.items():
        results = [survives(script, f"probe_envs:Recorder{family}-v0", random.uniform(0, 2)) for _ in range(kills)]
        print(f"{script}: {sum(results)} of {kills} went on", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
