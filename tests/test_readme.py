"""The README's commands parse, and its tables name what exists."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from conftest import ROOT, SCRIPTS, TAGS, load_script, run_folder


@pytest.fixture(scope="session")
def readme():
    return (ROOT / "README.md").read_text()


@pytest.fixture(scope="session")
def commands(readme):
    """(words up to the script, script, flags) of every command of the README's ```sh blocks that runs a script."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE):
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
    assert "step 32" in subprocess.run([*run, "--no-numpy-actor"], capture_output=True, text=True, check=True).stdout


def test_linked_files_exist(readme):
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_the_readme_example_in_python_runs(tmp_path, monkeypatch):
    import ppo_discrete

    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    ppo_discrete.train(ppo_discrete.Args(total_timesteps=1024, eval_episodes=0))
    (run_folder() / "checkpoint.pt").rename("checkpoint.pt")
    for block in blocks:
        exec(block, {})
