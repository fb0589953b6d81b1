"""What cannot work ends in exit code 2 and words that help, before anything is written."""

import re
import sys

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, load_script, once_per_script

NO_DEVICE = "mps" if torch.cuda.is_available() else "cuda"
USAGE = {
    "--batch-size 64": ["--batch-size"],
    "--learning-rate 0": ["--learning-rate must be", "not 0"],
    "--learning-rate -0.1": ["--learning-rate"],
    "--learning-rate nan": ["--learning-rate"],
    "--learning-rate fast": ["--learning-rate", "fast"],
    "--gamma 1.5": ["--gamma must be from 0 to 1, not 1.5"],
    "--gamma -0.1": ["--gamma"],
    "--gae-lambda 1.01": ["--gae-lambda"],
    "--clip-coef 0": ["--clip-coef"],
    "--max-grad-norm 0": ["--max-grad-norm"],
    "--target-kl 0": ["--target-kl"],
    "--ent-coef -1": ["--ent-coef"],
    "--vf-coef nan": ["--vf-coef"],
    "--total-timesteps 0": ["--total-timesteps"],
    "--total-timesteps 1.5": ["--total-timesteps", "1.5"],
    "--num-minibatches 0": ["--num-minibatches"],
    "--num-steps 0": ["--num-steps"],
    "--num-steps 8 --num-minibatches 100": ["--num-steps", "100"],
    "--update-epochs 0": ["--update-epochs"],
    "--hidden-size 0": ["--hidden-size"],
    "--checkpoint-interval 0": ["--checkpoint-interval"],
    "--num-threads 0": ["--num-threads"],
    "--num-threads 100000": ["--num-threads must be from 1 to 256"],
    "--target-return nan": ["--target-return"],
    "--device no-such-device": ["--device", "cpu", "cuda", "mps"],
    "--resume --total-timesteps 5": ["--resume"],
    "--seed -1": ["--seed"],
    "--eval-episodes -1": ["--eval-episodes"],
    "--resume": ["--resume"],
    "--resume {finished} --evaluate {finished}": ["--resume", "--evaluate"],
}
REFUSED = {
    "--env-id Cartpole-v1": ["Cartpole", "Did you mean", "CartPole"],
    "--env-id CartPole-v9": ["CartPole", "v9", "v1"],
    "--env-id nothing-like-it": ["nothing-like-it"],
    "--env-id no_such_module:MyEnv-v0": ["no_such_module"],
    "--env-id probe_envs:NoSuchEnv-v0": ["NoSuchEnv"],
    "--env-id probe_envs:NeedsExtra-v0": ["NeedsExtra", "no_such_package"],
    "--env-id probe_envs:ObsText{family}-v0": ["observations", "Text", "wrap"],
    "--env-id probe_envs:ObsNestedText{family}-v0": ["observations", "Text", "wrap"],
    "--env-id probe_envs:ObsSequence{family}-v0": ["observations", "no fixed size", "wrap"],
    "--env-id probe_envs:ObsGraph{family}-v0": ["observations", "no fixed size", "wrap"],
    "--env-id probe_envs:{foreign}-v0": ["actions", "{fitting}"],
    "--env-id probe_envs:ActTuple-v0": ["actions Tuple", "wrap"],
    "--env-id probe_envs:ActIntegerBox-v0": ["actions Box", "int64", "wrap"],
    "--env-id probe_envs:Recorder{family}-v0 --capture-video --total-timesteps 1": ["--capture-video", "render"],
    f"--device {NO_DEVICE}": [f"--device {NO_DEVICE}", "--device cpu"],
    "--log-dir {file}/runs": ["--log-dir"],
    "--log-dir {dangling}": ["--log-dir"],
    **{
        f"--{flag} {{{name}}}": ["{" + name + "}", *words]
        for flag in ("resume", "evaluate")
        for name, words in {
            "missing": ["not a readable checkpoint", "FileNotFoundError"],
            "folder": ["not a readable checkpoint", "IsADirectoryError"],
            "empty": ["not a readable checkpoint"],
            "truncated": ["not a readable checkpoint"],
            "garbage": ["not a readable checkpoint"],
            "pickled": ["not a readable checkpoint"],
        }.items()
    },
    "--resume={truncated}": ["not a readable checkpoint"],
    "--resume=": ["not a readable checkpoint"],
    "--evaluate=": ["not a readable checkpoint"],
    "--resume {finished}": ["has done its", "--total-timesteps"],
    "--resume {finished} --total-timesteps 1000 --env-id {default_env}": ["another network", "Recorder{family}-v0"],
    "--resume {finished} --total-timesteps 1000 --hidden-size 9": ["another network", "--hidden-size 8"],
    "--evaluate {finished} --env-id {default_env}": ["another network", "Recorder{family}-v0"],
    "--evaluate {finished} --hidden-size 9": ["another network", "--hidden-size 8"],
}


# Actions that another script, if any, trains, and what the message must name.
FOREIGN = {
    "ppo_discrete": ("ActScalar", "ppo_continuous.py"),
    "ppo_continuous": ("ActMultiBinary", "ppo_discrete.py"),
    "ppo_vector": ("ActTuple", "wrap"),
}

pytestmark = once_per_script


def finished_run(script, family, folder):
    """The checkpoint of a run of 64 steps on the Recorder, which is done."""
    sizes = {"total_timesteps": 64, "num_steps": 64, "num_minibatches": 2, "update_epochs": 1, "hidden_size": 8}
    if hasattr(script.Args, "num_envs"):
        sizes["num_envs"] = 1
    env_id = f"probe_envs:Recorder{family}-v0"
    script.train(script.Args(env_id=env_id, eval_episodes=1, log_dir=str(folder), **sizes))
    return next(folder.glob("*/checkpoint.pt"))


@pytest.fixture(scope="session")
def names(script, family, tmp_path_factory):
    """What stands for the {names} in the command lines: files, good and bad, and facts of the script."""
    folder = tmp_path_factory.mktemp("files")
    other = {"ppo_discrete": "ppo_continuous", "ppo_continuous": "ppo_vector"}.get(script.__name__, "ppo_discrete")
    files = {name: folder / name for name in ("missing", "folder", "file", "empty", "truncated", "garbage", "pickled")}
    files["finished"] = finished_run(script, family, folder / "own")
    files["other"] = finished_run(load_script(other), SCRIPTS[other][0], folder / "others")
    files["dangling"] = folder / "dangling"
    files["dangling"].symlink_to(folder / "nowhere")
    files["folder"].mkdir()
    files["file"].write_text("a file, not a folder")
    files["empty"].touch()
    files["truncated"].write_bytes(files["finished"].read_bytes()[:3000])
    files["garbage"].write_bytes(np.random.default_rng(0).bytes(3000))
    torch.save({"weights": torch.zeros(2)}, files["pickled"])
    facts = {"family": family, "default_env": script.Args().env_id, "all": folder}
    return files | facts | dict(zip(("foreign", "fitting"), FOREIGN[script.__name__], strict=True))


@pytest.fixture
def complaint(command, names, tmp_path):
    """Run a command line with the {names} filled in: the words on stderr, after exit code 2 and nothing written."""

    def contents():
        return {path: path.is_file() and path.read_bytes() for path in names["all"].rglob("*")}

    def complaint(line):
        before = contents()
        result = command("--log-dir", "runs", *line.format(**names).split())
        assert result.code == 2
        assert result.out == ""
        assert not [*tmp_path.iterdir()]
        assert contents() == before
        return result.err

    return complaint


@pytest.mark.parametrize("line, words", USAGE.items(), ids=USAGE)
def test_wrong_flags_are_a_usage_error(complaint, line, words):
    message = " ".join(re.sub("[│╭╮╰╯─]", " ", complaint(line)).split())
    for word in words:
        assert word in message
    assert "Traceback" not in message


@pytest.mark.parametrize("line, words", REFUSED.items(), ids=REFUSED)
def test_what_cannot_work_is_refused_in_one_line(complaint, names, line, words):
    message = complaint(line)
    assert re.fullmatch(r"error: .+\n", message)
    for word in words:
        assert word.format(**names) in message


def test_checkpoint_of_another_script(command, complaint, names, script):
    if script.__name__ == "ppo_vector":  # it has all flags and actions of ppo_discrete.py
        assert "over 1 episodes" in command("--evaluate", names["other"]).out
    else:
        words = {
            "ppo_discrete": "use ppo_continuous.py",
            "ppo_continuous": "not a readable checkpoint.pt of this script",
        }
        for flag in ("resume", "evaluate"):
            assert words[script.__name__] in complaint(f"--{flag} {{other}}")


def test_video_without_moviepy(complaint, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert "pip install moviepy" in complaint("--capture-video")


def test_args_refuse_the_same_in_python(script):
    with pytest.raises(ValueError, match=r"--gamma must be from 0 to 1, not 1\.5"):
        script.Args(gamma=1.5)


def test_usual_flags_are_accepted(script):
    """The smallest and largest sound values."""
    script.Args(gamma=0.0, gae_lambda=1.0, ent_coef=0.0, vf_coef=0.0, seed=0, eval_episodes=0, total_timesteps=1)
    script.Args(gamma=1.0, gae_lambda=0.0, target_kl=0.01, num_steps=16, num_minibatches=4)
