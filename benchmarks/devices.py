"""Steps per second of ppo_vector.py on a CPU core and on a GPU, by the size of the network.

    python benchmarks/devices.py

Native CartPole with networks of two hidden layers, then frames of 4 x 84 x 84 with the CNN of Mnih et al. 2015.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from grid import ENVIRONMENT, ROOT

SCRIPT = ROOT / "ppo_vector.py"
SIZES = "--num-envs 64 --num-steps 128 --update-epochs 4 --eval-episodes 0"
CNN_FLAGS = "--no-norm-obs --no-numpy-actor"
CNN = (  # pairs of (text of the script, other text): the edits that the README names
    (
        "nn.Sequential(first, nn.ReLU(), second, nn.ReLU())",
        "nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), "
        "nn.ReLU(), nn.Flatten(), nn.Linear(3136, args.hidden_size), nn.ReLU())",
    ),
    (
        "        obs = 10 * torch.asinh(obs / self.obs_rms / 10)  # linear near 0, log above 10\n",
        "        obs = obs.view(-1, 4, 84, 84) / 255\n",
    ),
)
FRAMES = """
import gymnasium as gym
import numpy as np

class Frames(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (4, 84, 84), np.uint8), {}

    def step(self, action):
        return self.np_random.integers(0, 256, (4, 84, 84), np.uint8), float(action), False, False, {}

gym.register("Frames-v0", entry_point=Frames, max_episode_steps=100)
"""


def with_cnn(text):
    for old, new in CNN:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def speed(text, flags, device):
    """Steps per second at the end of a run of the script."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ppo_vector.py").write_text(text)
        Path(folder, "frames.py").write_text(FRAMES)
        words = [sys.executable, "ppo_vector.py", *flags.split(), *SIZES.split(), "--device", device]
        run = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr)
        return int(re.findall(r"(\d+) steps/s", run.stdout)[-1])


def main():
    text = SCRIPT.read_text()
    works = [(f"{n} wide", text, f"--hidden-size {n} --total-timesteps 163840") for n in (64, 256, 512, 1024)]
    frames = f"--env-id frames:Frames-v0 {CNN_FLAGS} --hidden-size 512 --total-timesteps 16384"
    works.append(("CNN", with_cnn(text), frames))
    print(f"{'network':10s}{'cpu':>10s}{'cuda':>10s}  steps/s")
    for name, script, flags in works:
        print(f"{name:10s}{speed(script, flags, 'cpu'):10d}{speed(script, flags, 'cuda'):10d}", flush=True)


if __name__ == "__main__":
    main()
