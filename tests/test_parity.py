"""The scripts repeat each other instead of importing: what bears one name must stay one text."""

import ast
import difflib
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS, TESTS

FIRST, *OTHERS = SCRIPTS
DIFF_BUDGET = 60  # lines of `diff ppo_discrete.py ppo_continuous.py`, both sides
# What was reached. The goal is 350 lines and 19,000 bytes, for ppo_vector.py 390 and 22,000: never raise these.
LINES = {"ppo_discrete": 418, "ppo_continuous": 423, "ppo_vector": 505}
BYTES = {"ppo_discrete": 23_057, "ppo_continuous": 23_196, "ppo_vector": 28_033}
LONG_LINES = 25  # of over 100 columns

GAUSSIAN = "a Gaussian of a mean and a log_std in place of logits"
BOTH = "discrete actions and Gaussian ones, by the action space"
ROWS = "arrays are (T, N, ...), and rows of a reset are left out"
# What differs from ppo_discrete.py on purpose, and why.
DELIBERATE = {
    "ppo_continuous": {
        "Args.env_id": "an environment with Box actions",
        "Args.learning_rate": "measured: Gaussian policies take smaller steps",
        "Args.num_steps": "measured: and longer rollouts",
        "Args.num_minibatches": "measured: of as many rows",
        "Args.ent_coef": "measured: more noise costs more of the return",
        "Args.vf_coef": "measured: HalfCheetah and LunarLander end higher",
        "ActorCritic.__init__": GAUSSIAN,
        "ActorCritic.sample": GAUSSIAN,
        "ActorCritic.greedy": GAUSSIAN,
        "ActorCritic.log_prob_and_entropy": GAUSSIAN,
        "make_env": "actions are scaled to the bounds of a Box",
    },
    "ppo_vector": {
        "Args.num_steps": "a rollout is as many steps in each of several environments",
        "Args.ent_coef": "one set of defaults for all actions",
        "Args.learning_rate": "measured: fewer and larger steps cost less time",
        "Args.update_epochs": "measured: fewer and larger steps cost less time",
        "Args.hidden_size": "measured: fewer and larger steps cost less time",
        "Args.num_minibatches": "the comment has the recipe for Box actions",
        "Args.vf_coef": "measured: LunarLander ends higher",
        "Args.total_timesteps": "a reset is a step of its own",
        "Args.__post_init__": "the number of environments is one more that must be positive",
        "ActorCritic.__init__": BOTH,
        "ActorCritic.sample": BOTH,
        "ActorCritic.greedy": BOTH,
        "ActorCritic.log_prob_and_entropy": BOTH,
        "ActorCritic.update_obs_stats": "moments of all processes",
        "ActorCritic.update_return_stats": "moments of all processes",
        "collect_rollout": ROWS,
        "ppo_update": "parameters are averaged over processes",
        "evaluate": "a vector environment",
        "train": "vector environments, of which each process has its own",
        "the main block": "vector environments",
    },
}


def read(name):
    return (ROOT / f"{name}.py").read_text()


def parts(name):
    """{name: source} of the functions, methods and fields of a script; what is left of a class goes by its name."""
    lines = read(name).splitlines()
    found = {}

    def take(key, node):
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        found[key] = lines[first - 1 : node.end_lineno]
        lines[first - 1 : node.end_lineno] = [""] * len(found[key])

    for node in ast.parse(read(name)).body:
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    take(f"{node.name}.{member.name}", member)
                elif isinstance(member, ast.AnnAssign):
                    take(f"{node.name}.{member.target.id}", member)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            take(node.name, node)
    found["the main block"] = read(name).split("\nif __name__")[1]
    return {key: [line for line in source if line] for key, source in found.items()}


@pytest.mark.parametrize("other", OTHERS)
def test_what_bears_one_name_is_one_text(other):
    ours = parts(FIRST)
    theirs = parts(other)
    if other == "ppo_continuous":  # but for the limit of the noise
        theirs["train"] = [line for line in theirs["train"] if "log_std" not in line]
    different = {name for name in {*ours} & {*theirs} if ours[name] != theirs[name]}
    assert different == {*DELIBERATE[other]}


def test_the_first_two_scripts_have_the_same_parts_in_the_same_order():
    continuous = [name for name in parts("ppo_continuous") if name != "Args.log_std_init"]
    assert [*parts("ppo_discrete")] == continuous


@pytest.mark.parametrize("other", OTHERS)
def test_parts_of_the_first_script_keep_their_order(other):
    common = {*parts(FIRST)} & {*parts(other)}
    assert [name for name in parts(FIRST) if name in common] == [name for name in parts(other) if name in common]


def test_difference_stays_within_its_budget():
    changes = difflib.ndiff(read("ppo_discrete").splitlines(), read("ppo_continuous").splitlines())
    assert len([line for line in changes if line[0] in "+-"]) <= DIFF_BUDGET


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short(name):
    lines = read(name).splitlines()
    assert len(lines) <= LINES[name]
    assert len(read(name).encode()) <= BYTES[name]
    assert sum(len(line) > 100 for line in lines) <= LONG_LINES


@pytest.mark.parametrize(
    "path", [ROOT / f"{name}.py" for name in SCRIPTS] + [*TESTS.glob("*.py")], ids=lambda x: x.stem
)
def test_a_statement_assigns_one_value(path):
    """No a = b = x, no walrus, and a tuple to the left only of what gives several values."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.NamedExpr), node.lineno
        if isinstance(node, ast.Assign):
            assert len(node.targets) == 1, node.lineno
            assert not (isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)), node.lineno


@pytest.mark.parametrize("name", SCRIPTS)
def test_inline_dependencies_are_the_requirements(name):
    (dependencies,) = re.findall(r"^# dependencies = (\[.+\])$", read(name), re.MULTILINE)
    assert ast.literal_eval(dependencies) == (ROOT / "requirements.txt").read_text().splitlines()


def test_import_has_no_side_effects(tmp_path):
    """No file, no other thread count, no number drawn, no signal handler."""
    state = "random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()"
    state += (
        ", torch.get_default_dtype(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.listdir()"
    )
    program = f"""
import os, random, signal, sys, numpy, torch
torch.set_num_threads(2)
sys.path.insert(0, {str(ROOT)!r})
before = {state}
import {", ".join(SCRIPTS)}
assert before == ({state})
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
