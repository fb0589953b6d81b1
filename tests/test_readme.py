"""The commands of the READMEs parse, their links lead somewhere, and the tables name what exists."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from conftest import ROOT, SCRIPTS, TAGS, discrete_script, load_script, read_scalars, run_folder


@pytest.fixture(scope="session")
def readme():
    return (ROOT / "README.md").read_text()


READMES = [ROOT / folder / "README.md" for folder in (".", "benchmarks", "tests")]


@pytest.fixture(scope="session")
def commands():
    """(words up to the script, script, flags) of every command in ```sh blocks of the READMEs that runs a script."""
    found = []
    text = "".join(path.read_text() for path in READMES)
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for _, group in itertools.groupby(lexer, key=lambda word: set(word) <= set("();<>|&")):
                words = [*group]
                scripts = [word for word in words if word.endswith(".py")]
                if scripts:
                    start = words.index(scripts[0])
                    found.append((words[:start], scripts[0].removesuffix(".py"), words[start + 1 :]))
    return found


def test_there_are_commands_for_every_script(commands):
    assert {script for _, script, _ in commands} >= {*SCRIPTS}


def test_commands_run_what_exists(commands):
    for runner, name, _ in commands:
        if name == "ppo_continuous_action_torchcompile":  # a script of LeanRL
            continue
        assert (ROOT / f"{name}.py").is_file(), name
        assert runner[-1].endswith("python") or runner[0] in ("torchrun", "uv"), runner


def test_flags_of_commands_parse(commands, capsys):
    for _, name, flags in commands:
        for path in (Path(flag) for flag in flags if flag.endswith(".pt")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if name in SCRIPTS and "--help" not in flags:
            try:
                tyro.cli(load_script(name).Args, args=[re.sub(r"\$\w+", "1", flag) for flag in flags])
            except SystemExit:
                pytest.fail(f"{name}.py {shlex.join(flags)}\n{capsys.readouterr().err}")


def table_words(readme, pattern):
    """What stands in backticks in the README's tables and is of that pattern."""
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    return {word for row in rows for word in re.findall(rf"`({pattern})`", row)}


def test_tables_name_all_metrics_and_no_others(readme):
    assert table_words(readme, r"(?:charts|losses|eval)/\w+") == TAGS


def test_python_examples_import_what_exists(readme):
    imports = re.findall(r"^from (ppo_\w+) import (.+)$", readme, re.MULTILINE)
    assert imports
    for name, words in imports:
        for word in words.split(", "):
            assert hasattr(load_script(name), word)


def test_results_are_those_of_the_csv_files():
    report = [sys.executable, ROOT / "benchmarks" / "report.py", "--check"]
    assert subprocess.run(report, capture_output=True).returncode == 0


def test_the_edits_for_a_cnn_train(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import devices

    Path("ppo_vector.py").write_text(devices.with_cnn(devices.SCRIPT.read_text()))
    Path("frames.py").write_text(devices.FRAMES)
    flags = "--env-id frames:Frames-v0 --num-envs 2 --num-steps 8 --num-minibatches 1 --total-timesteps 32"
    run = [sys.executable, "ppo_vector.py", *flags.split(), "--eval-episodes", "0", "--hidden-size", "16"]
    run += devices.CNN_FLAGS.split()
    assert "step 32" in subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_changes_of_the_ablation_fit_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ablation

    for name in ("ppo_discrete.py", "ppo_continuous.py"):
        work = ablation.WORKS[0]._replace(script=name)
        for variant in ablation.CHANGES:
            for old, _ in ablation.change(work, variant).patch:
                assert (ROOT / name).read_text().count(old) == 1, (name, variant, old)


def anchors(path):
    """Those that GitHub makes of the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings():
    links = [(path, *link) for path in READMES for link in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", path.read_text())]
    assert {path for path, *_ in links} == {*READMES}
    for path, target, anchor in links:
        file = path.parent / target if target else path
        assert file.exists(), (path, target)
        assert not anchor or anchor in anchors(file), (path, target, anchor)


@pytest.fixture(scope="session")
def python_blocks(readme):
    return re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)


FOR_VECTORS = {  # by the words of its comment
    "ppo_discrete": "ppo_vector",
    "make_env(args)": "make_envs(args, 1)",
    ", make_env\n": ", make_envs\n",
    "env.observation_space": "env.single_observation_space",
    "env.action_space": "env.single_action_space",
    "[None]": "",
    "logits[0]": "logits",
}


@pytest.mark.parametrize("name, changes", [("ppo_discrete", {}), ("ppo_vector", FOR_VECTORS)])
def test_the_readme_example_in_python_runs(python_blocks, name, changes):
    script = load_script(name)
    script.train(script.Args(total_timesteps=1024, eval_episodes=0))
    (run_folder() / "checkpoint.pt").rename("checkpoint.pt")
    (example,) = [block for block in python_blocks if "import torch" in block]
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    loaded, onnx = example.rsplit("\n", 2)[:2]
    assert onnx.startswith("torch.onnx.export(")  # needs packages that the tests do not install, and begins like this
    names = {}
    exec(loaded, names)
    program = torch.export.export(names["agent"], (torch.zeros(1, 4),))
    logits, values = program.module()(torch.zeros(1, 4))
    assert (logits.shape, values.shape) == ((1, 2), (1,))
    assert np.all(np.isin(names["action"], [0, 1]))


@discrete_script
def test_the_readme_recipes_train(script, python_blocks, edited):
    """The lines of the recipes at their places in a copy of ppo_discrete.py; wandb is a stand-in that is asked once."""
    script.train(script.Args(total_timesteps=1024, eval_episodes=0, log_dir="old"))
    run_folder("old").rename("old/run")
    Path("old/run/checkpoint.pt").rename("old/checkpoint.pt")
    (recipes,) = [block for block in python_blocks if "import torch" not in block]
    success, curve, mask, logits, returned, weights, wandb = [
        line + "\n" for line in recipes.splitlines() if line.startswith(" ")
    ]
    changed = edited(
        ("import gymnasium as gym\n", "import gymnasium as gym\nimport wandb\n"),
        ('            episodes.append(info.pop("ppo_episode"))  # envs may reuse info\n', success),
        (
            '                metrics["charts/episodic_return"] =',
            curve + '                metrics["charts/episodic_return"] =',
        ),
        ("        obs = 10 * torch.asinh(", mask + "        obs = 10 * torch.asinh("),
        ("        return self.actor(hidden), values * self.return_std + self.return_mean\n", logits + returned),
        ("    if saved:\n", weights + "    if saved:\n"),
        ("    writer = SummaryWriter(", wandb + "    writer = SummaryWriter("),
    )
    Path("wandb.py").write_text("def init(project, sync_tensorboard):\n    print('wandb:', project)\n")
    Path("masked.py").write_text(MASKED)
    flags = "--env-id masked:Masked-v0 --total-timesteps 2048 --eval-episodes 5 --norm-obs --no-numpy-actor"
    run = [sys.executable, changed, *flags.split()]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "wandb: ppo" in done.stdout
    scalars = read_scalars(run_folder())
    assert {value for _, value in scalars["charts/success_rate"]} == {1.0}  # no step took what the mask forbids


MASKED = """
import gymnasium as gym
import numpy as np


class Masked(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def observe(self):
        self.steps += 1
        self.mask = np.roll([1, 0], int(self.np_random.integers(2)))
        return np.array([*self.mask, 1, 0], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.fine = True
        return self.observe(), {}

    def step(self, action):
        self.fine = self.fine and bool(self.mask[action])
        return self.observe(), 1.0, False, self.steps > 20, {"is_success": self.fine}


gym.register("Masked-v0", entry_point=Masked)
"""
