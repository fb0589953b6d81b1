"""One-line faults in copies of the scripts, and the test that catches each one. Run by hand; it takes some minutes.

    python tests/mutations.py
    python tests/mutations.py 3 17

Prints each fault and whether its test failed, as it must. Ends with the number caught and exit code 1 if one survived.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
D, C, V = "ppo_discrete", "ppo_continuous", "ppo_vector"
FAULTS = [  # script, text, text with the fault, test
    (D, "gamma * ~terminated * next_values", "gamma * ~truncated * next_values", "test_gae.py"),
    (D, "gae_lambda * ~(terminated | truncated)", "gae_lambda * ~terminated", "test_gae.py"),
    (D, "gamma * ~terminated * next_values", "~terminated * next_values", "test_gae.py"),
    (D, "decay = gamma * gae_lambda *", "decay = gamma *", "test_gae.py"),
    (D, "return advantages, advantages + values", "return advantages, advantages - values", "test_gae.py"),
    (D, "- args.ent_coef * entropy", "+ args.ent_coef * entropy", "test_update.py::test_equals_a_textbook_update"),
    (
        D,
        'logratio = logprobs - rollout["logprobs"][rows]',
        'logratio = rollout["logprobs"][rows] - logprobs',
        "test_update.py::test_equals_a_textbook_update",
    ),
    (
        D,
        "ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)",
        "ratio.clamp(max=1 + args.clip_coef)",
        "test_update.py::test_gradient_ends_where_the_ratio_has_left_the_clip_range",
    ),
    (D, "policy_loss = -torch.min(", "policy_loss = -torch.max(", "test_update.py::test_equals_a_textbook_update"),
    (
        D,
        "clipped_ratio * advantages[rows]",
        "clipped_ratio * advantages[: len(rows)]",
        "test_update.py::test_equals_a_textbook_update",
    ),
    (
        D,
        "((values - returns[rows]) / agent.return_stats.std)",
        "(values - returns[rows])",
        "test_update.py::test_equals_a_textbook_update",
    ),
    (D, "args.vf_coef * value_loss", "value_loss", "test_update.py::test_equals_a_textbook_update"),
    (D, "optimizer.zero_grad()", "pass", "test_update.py::test_equals_a_textbook_update"),
    (D, "args.max_grad_norm, error", "1e9, error", "test_update.py::test_equals_a_textbook_update"),
    (
        D,
        "error_if_nonfinite=True",
        "error_if_nonfinite=False",
        "test_update.py::test_a_gradient_that_is_nan_changes_nothing",
    ),
    (
        D,
        "            break\n",
        "            pass\n",
        "test_update.py::test_target_kl_ends_the_update_after_the_first_epoch_above_it",
    ),
    (
        D,
        "rng.permutation(len(returns))",
        "np.arange(len(returns))",
        "test_update.py::test_each_epoch_takes_every_row_once_in_a_new_order",
    ),
    (D, "if args.norm_adv:", "if True:", "test_update.py::test_equals_a_textbook_update"),
    (
        D,
        "-(logp.exp() * logp).sum(-1)",
        "-logp.mean(-1)",
        "test_agent.py::test_evaluate_actions_equals_torch_distributions",
    ),
    (D, ".clamp(-10, 10)", "", "test_agent.py::test_observations_are_normalized_and_cut_at_10"),
    (
        D,
        ".squeeze(-1) * self.return_stats.std",
        ".squeeze(-1)",
        "test_agent.py::test_values_are_in_units_of_the_return",
    ),
    (
        D,
        "None if args.shared_backbone else",
        "None if True else",
        "test_agent.py::test_values_train_the_layers_of_the_policy_only_where_they_are_shared",
    ),
    (
        D,
        "self.critic_backbone(obs) if self.critic_backbone else hidden",
        "hidden",
        "test_agent.py::test_values_train_the_layers_of_the_policy_only_where_they_are_shared",
    ),
    (
        D,
        "hidden = np.maximum(hidden @",
        "hidden = np.abs(hidden @",
        "test_agent.py::test_numpy_actor_equals_forward",
    ),
    (
        D,
        " + weight * (1 - weight) * delta**2",
        "",
        "test_agent.py::test_statistics_equal_numpy_over_uneven_batches",
    ),
    (
        D,
        "            obs, _ = env.reset()\n    if not",
        "            next_obs[t], _ = obs, _ = env.reset()\n    if not",
        "test_rollout.py::test_rows_are_the_transitions_of_the_environment",
    ),
    (
        D,
        "logprobs}, transitions, obs, episodes",
        "logprobs}, transitions, env.reset()[0], episodes",
        "test_rollout.py::test_the_episode_goes_on_in_the_next_rollout",
    ),
    (
        D,
        "(outputs[t] + noise[t]).argmax()",
        "outputs[t].argmax()",
        "test_agent.py::test_samples_follow_the_distribution",
    ),
    (D, "rng.gumbel(size", "rng.normal(size", "test_agent.py::test_samples_follow_the_distribution"),
    (
        D,
        "        if terminated or truncated:\n            returns",
        "        agent.obs_stats.update(obs[None])\n        if terminated or truncated:\n            returns",
        "test_agent.py::test_evaluation_leaves_the_agent_alone",
    ),
    (
        D,
        'optimizer.load_state_dict(saved["optimizer"]',
        'dict(saved["optimizer"]',
        "test_gaps.py::test_a_resumed_run_keeps_its_optimizer_and_begins_another_episode",
    ),
    (
        D,
        '"step": global_step}',
        '"step": global_step - args.num_steps}',
        "test_runs.py::test_solved_run_stops_early_and_says_when",
    ),
    (
        D,
        "            metrics = ppo_update",
        '            agent.obs_stats.update(rollout["obs"])\n            metrics = ppo_update',
        "test_gaps.py::test_the_policy_that_acted_is_the_one_that_the_update_starts_from",
    ),
    (D, "np.random.seed(seed)", "pass", "test_runs.py::test_the_seed_reaches_the_global_generator"),
    (
        D,
        "_epoch: 1 - global_step",
        "_epoch: global_step",
        "test_runs.py::test_curves_show_episodes_and_rates_over_environment_steps",
    ),
    (
        D,
        'f"{path}.tmp")\n    Path(f"{path}.tmp").replace(path)',
        "path)",
        "test_runs.py::test_checkpoint_is_replaced_whole",
    ),
    (
        D,
        "        env.close()  # before",
        "        # before",
        "test_runs.py::test_only_one_environment_is_open_at_a_time",
    ),
    (D, "][-20:]", "][-10:]", "test_runs.py::test_curves_show_episodes_and_rates_over_environment_steps"),
    (D, "len(last_returns) == 20 and ", "", "test_gaps.py::test_solved_takes_20_episodes"),
    (
        D,
        "agent.return_stats.update(returns)",
        "agent.return_stats.update(advantages)",
        "test_runs.py::test_statistics_cover_all_observations_and_returns",
    ),
    (
        C,
        "rng.normal(0, agent.log_std.exp().tolist(), ",
        "rng.normal(0, 1.0, ",
        "test_agent.py::test_samples_follow_the_distribution",
    ),
    (D, "self.critic: 1.0", "self.critic: 0.0", "test_agent.py::test_fresh_agent_is_close_to_uniform_and_centered"),
    (
        C,
        "actions.append(outputs[t] + noise[t])",
        "actions.append(np.clip(outputs[t] + noise[t], -1, 1))",
        "test_rollout.py::test_rows_are_the_transitions_of_the_environment",
    ),
    (
        C,
        "outputs[0].detach().cpu().numpy())",
        "outputs[0].detach().cpu().numpy() + np.random.normal())",
        "test_agent.py::test_evaluation_is_greedy",
    ),
    (C, "mid + half * a", "half * a", "test_gaps.py::test_actions_are_scaled_to_finite_bounds"),
    (
        C,
        "policy.log_prob(actions).sum(-1)",
        "policy.log_prob(actions).mean(-1)",
        "test_agent.py::test_evaluate_actions",
    ),
    (
        V,
        "average(nn.utils.parameters_to_vector(gradients))",
        "nn.utils.parameters_to_vector(gradients)",
        "test_vector.py::test_two_processes_train_as_one",
    ),
    (V, "valid[t] = ~done", "valid[t] = True", "test_vector.py::test_rollouts_follow_a_trace_written_by_hand"),
    (
        V,
        "done = terminated[t] | truncated[t]",
        "done = terminated[t]",
        "test_vector.py::test_rollouts_follow_a_trace_written_by_hand",
    ),
    (
        V,
        "values[:-1], values[1:], terminated",
        "values[:-1], values[:-1], terminated",
        "test_vector.py::test_rollouts_follow_a_trace_written_by_hand",
    ),
    (V, "default_rng([seed, rank])", "default_rng(seed)", "test_vector.py::test_no_two_environments_begin_alike"),
    (
        D,
        "env.reset(seed=int(rng.integers(2**31)))",
        "env.reset(seed=seed)",
        "test_gaps.py::test_environment_and_actions_draw_different_numbers",
    ),
    (D, "table[action].copy()", "table[action]", "test_gaps.py::test_an_environment_may_change_its_action_in_place"),
    (D, "vars(self).update(", "dict(", "test_gaps.py::test_a_run_by_numbers_of_numpy_is_resumed"),
    (D, "max(), 10))", "max(), 1e9))", "test_rollout.py::test_a_mask_does_not_hide_a_difference"),
    (V, " if p.grad is not None]", "]", "test_vector.py::test_two_processes_train_as_one"),
    (
        V,
        "args.num_steps // 2 * args.num_envs <",
        "args.num_steps * args.num_envs <",
        "test_gaps.py::test_rollouts_too_small_for_their_minibatches_are_refused",
    ),
    (D, "std=0.0 if", "std=1.0 if", "test_agent.py::test_fresh_agent_is_close_to_uniform_and_centered"),
    (D, "zipfile.ZipFile(checkpoint).testzip()", "False", "test_gaps.py::test_a_checkpoint_with_a_flipped_bit"),
    (C, "            if args.norm_obs:\n", "            if False:\n", "test_learning.py::test_policy_finds_the_best"),
    (V, "= average(torch.stack(", "= (torch.stack(", "test_vector.py::test_two_processes_train_as_one"),
    (
        V,
        "            if args.norm_obs:\n",
        "            if False:\n",
        "test_vector.py::test_two_processes_train_as_one",
    ),
]


def survives(script, text, fault, test):
    """Whether the test passes on a copy of the repository with the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__"))
        source = (copy / f"{script}.py").read_text()
        if text not in source:
            sys.exit(f"{script}.py has no {text!r}")
        (copy / f"{script}.py").write_text(source.replace(text, fault))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test.split('::')[0]}"]
        name = test.partition("::")[2]
        chosen = f"{script} and {name}" if name else script
        if test.startswith("test_vector.py"):
            chosen = name
        result = subprocess.run([*command, "-k", chosen], cwd=copy, capture_output=True, text=True)
        if result.returncode not in (0, 1):
            sys.exit(f"{test} on {script} was not run:\n{result.stdout}")
        return result.returncode == 0


def main():
    numbers = [int(word) for word in sys.argv[1:]] or range(len(FAULTS))
    survivors = 0
    for number in numbers:
        script, text, fault, test = FAULTS[number]
        survived = survives(script, text, fault, test)
        survivors += survived
        word = "SURVIVED" if survived else "caught"
        print(f"{number:2d} {word:8s} {script}: {text.strip()!r} -> {fault.strip()!r} ({test})", flush=True)
    print(f"{len(numbers) - survivors} of {len(numbers)} caught")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
