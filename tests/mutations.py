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
D = "ppo_discrete"
C = "ppo_continuous"
V = "ppo_vector"
FAULTS = [  # script, text, text with the fault, test
    (D, "gamma * (1 - terminated) * next_values", "gamma * (1 - truncated) * next_values", "test_gae.py"),
    (D, "gae_lambda * (1 - terminated) * (1 - truncated)", "gae_lambda * (1 - terminated)", "test_gae.py"),
    (D, "rewards + gamma * (1", "rewards + (1", "test_gae.py"),
    (D, "decay = gamma * gae_lambda *", "decay = gamma *", "test_gae.py"),
    (D, "advantages + values", "advantages - values", "test_gae.py"),
    (D, "- fraction * args.ent_coef", "+ fraction * args.ent_coef", "test_update.py::test_equals_a_textbook_update"),
    (D, "- fraction * args", "- args", "test_update.py::test_a_fraction_scales_the_entropy_bonus_alone"),
    (
        D,
        "args, rng, fraction)",
        "args, rng)",
        "test_checkpoints.py::test_groups_of_parameters_keep_their_learning_rates_after_a_resume",
    ),
    (
        V,
        "args, rng, fraction)",
        "args, rng)",
        "test_checkpoints.py::test_groups_of_parameters_keep_their_learning_rates_after_a_resume",
    ),
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
        "clipped * advantages[rows]",
        "clipped * advantages[: len(rows)]",
        "test_update.py::test_equals_a_textbook_update",
    ),
    (
        D,
        "((values - returns[rows]) / agent.return_std)",
        "(values - returns[rows])",
        "test_update.py::test_equals_a_textbook_update",
    ),
    (D, "args.vf_coef * value_loss", "value_loss", "test_update.py::test_equals_a_textbook_update"),
    (D, "optimizer.zero_grad()", "pass", "test_update.py::test_equals_a_textbook_update"),
    (
        D,
        "agent.parameters(), args.max_grad_norm",
        "agent.parameters(), 1e9",
        "test_update.py::test_equals_a_textbook_update",
    ),
    (
        D,
        "            check((loss + grad_norm).isfinite()",
        "            check(True",
        "test_update.py::test_a_gradient_that_is_nan_changes_nothing",
    ),
    (
        D,
        "            break\n    return",
        "            pass\n    return",
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
        "-(logp.exp() * logp).flatten(1).sum(-1)",
        "-logp.mean(-1)",
        "test_agent.py::test_log_probabilities_and_entropies_are_those_of_the_formulas",
    ),
    (D, ".clamp(min=-1e9)", "", "test_agent.py::test_a_mask_of_minus_infinity_leaves_the_gradient_finite"),
    (
        D,
        "10 * torch.asinh(",
        "11 * torch.asinh(",
        "test_agent.py::test_observations_are_scaled_and_large_ones_grow_as_a_logarithm",
    ),
    (D, "10 * np.arcsinh", "9 * np.arcsinh", "test_agent.py::test_numpy_actor_equals_forward"),
    (
        D,
        "self.obs_rms.double() ** 2 *",
        "self.obs_rms.double() *",
        "test_agent.py::test_statistics_equal_numpy_over_all_rollouts",
    ),
    (D, ".clamp(-limit, limit)", "", "test_agent.py::test_outliers_do_not_set_the_scale_of_observations"),
    (
        D,
        "10 * torch.fmax(self.obs_rms, median)",
        "10 * self.obs_rms",
        "test_agent.py::test_a_new_scale_of_most_observations_is_no_outlier",
    ),
    (
        D,
        "torch.fmax(self.obs_rms, median)",
        "median",
        "test_agent.py::test_a_feature_whose_numbers_become_small_counts_its_other_numbers",
    ),
    (
        D,
        "obs.where(obs != 0, np.nan).abs().nanmedian(0)",
        "obs.abs().median(0)",
        "test_agent.py::test_large_numbers_among_zeros_set_the_scale_at_once",
    ),
    (
        D,
        "(10 * (obs != 0).sum(0)).clamp(max=len(obs))",
        "len(obs)",
        "test_agent.py::test_few_zeros_count_where_other_numbers_are_rare",
    ),
    (D, "1e-30", "0.0", "test_agent.py::test_statistics_of_extreme_observations_are_finite"),
    (D, "1e-30", "0.0", "test_agent.py::test_a_feature_that_was_almost_0_leaves_the_network_finite"),
    (
        D,
        "values * self.return_std",
        "values",
        "test_agent.py::test_values_are_in_units_of_the_return",
    ),
    (D, "hidden = np.maximum(hidden @", "hidden = np.abs(hidden @", "test_agent.py::test_numpy_actor_equals_forward"),
    (
        D,
        "(self.return_std.item() ** 2 + share * delta**2)",
        "self.return_std.item() ** 2",
        "test_agent.py::test_statistics_equal_numpy_over_all_rollouts",
    ),
    (
        D,
        "            obs, _ = env.reset()\n    all_obs",
        "            next_obs[:], _ = obs, _ = env.reset()\n    all_obs",
        "test_rollout.py::test_rows_are_the_transitions_of_the_environment",
    ),
    (
        D,
        "return rollout, transitions, obs, episodes",
        "return rollout, transitions, env.reset()[0], episodes",
        "test_rollout.py::test_the_episode_goes_on_in_the_next_rollout",
    ),
    (
        D,
        "self.greedy(outputs + rng.gumbel(size=outputs.shape))",
        "self.greedy(outputs)",
        "test_agent.py::test_samples_follow_the_distribution",
    ),
    (D, "rng.gumbel(size", "rng.normal(size", "test_agent.py::test_samples_follow_the_distribution"),
    (D, " if rng else agent.greedy(outputs)", "", "test_agent.py::test_evaluation_is_greedy"),
    (D, "    agent.eval()\n", "", "test_rollout.py::test_any_layer_trains_without_numpy"),
    (
        D,
        'optimizer.load_state_dict(saved["optimizer"])',
        "pass",
        "test_checkpoints.py::test_a_changed_optimizer_is_not_changed_back_by_a_checkpoint",
    ),
    (
        D,
        '"step": global_step}',
        '"step": global_step - args.num_steps}',
        "test_runs.py::test_solved_is_a_mean_of_the_target_over_20_episodes",
    ),
    (
        D,
        "            metrics = ppo_update",
        '            agent.update_obs_stats(rollout["obs"])\n            metrics = ppo_update',
        "test_update.py::test_the_policy_that_acted_is_the_one_that_the_update_starts_from",
    ),
    (D, "np.random.seed(seed)", "pass", "test_runs.py::test_the_seed_reaches_the_global_generators"),
    (D, "    random.seed(seed)\n", "", "test_runs.py::test_the_seed_reaches_the_global_generators"),
    (
        D,
        "fraction = 1 - global_step",
        "fraction = global_step",
        "test_runs.py::test_curves_show_episodes_and_rates_over_environment_steps",
    ),
    (
        D,
        'group.setdefault("initial_lr", group["lr"])',
        "args.learning_rate",
        "test_checkpoints.py::test_groups_of_parameters_keep_their_learning_rates_after_a_resume",
    ),
    (
        D,
        'f"{path}.tmp")\n    Path(f"{path}.tmp").replace(path)',
        "path)",
        "test_checkpoints.py::test_checkpoint_is_replaced_whole",
    ),
    (
        D,
        "        env.close()  # some",
        "        # before",
        "test_runs.py::test_only_one_environment_is_open_at_a_time",
    ),
    (D, "maxlen=20", "maxlen=10", "test_runs.py::test_curves_show_episodes_and_rates_over_environment_steps"),
    (D, "bool(terminated)", "terminated", "test_rollout.py::test_ends_and_rewards_of_any_type"),
    (D, "np.float64(r).item()", "reward", "test_rollout.py::test_ends_and_rewards_of_any_type"),
    (D, "np.float64(rewards)", "rewards", "test_rollout.py::test_a_bonus_is_added_to_integer_rewards"),
    (
        D,
        "logprobs.shape == entropies.shape",
        "entropies.shape",
        "test_rollout.py::test_a_forgotten_sum_or_squeeze_is_one_line",
    ),
    (
        D,
        'saved["args"]["env_kwargs"] | args.env_kwargs',
        "args.env_kwargs",
        "test_other_people.py::test_arguments_of_the_environment_on_the_command_line",
    ),
    (D, " == values.shape == ", " == ", "test_rollout.py::test_a_forgotten_sum_or_squeeze_is_one_line"),
    (
        V,
        'batch_size = transitions["rewards"].size',
        "batch_size = args.num_steps * args.num_envs",
        "test_runs.py::test_a_length_of_rollouts_that_changes_is_counted",
    ),
    (
        D,
        "global_step += len(returns)",
        "global_step += args.num_steps",
        "test_runs.py::test_a_length_of_rollouts_that_changes_is_counted",
    ),
    (D, "if args.anneal_lr:", "if True:", "test_runs.py::test_a_rate_set_by_an_edited_update_stays_without_annealing"),
    (D, "float(fraction)", "fraction", "test_checkpoints.py::test_a_schedule_by_numpy_makes_a_checkpoint_that_loads"),
    (
        D,
        'with make_env(args, Path(checkpoint).parent / "videos") as env:',
        'if env := make_env(args, Path(checkpoint).parent / "videos"):',
        "test_other_people.py::test_an_error_closes_the_environment",
    ),
    (
        V,
        "max(variance, 1e-8) ** 0.5",
        "max(variance**0.5, 1e-4)",
        "test_agent.py::test_statistics_of_equal_returns_are_finite",
    ),
    (
        V,
        """            envs.close(**({"timeout": 1} if hasattr(envs.unwrapped, "step_async") else {}))""",
        "            pass",
        "test_other_people.py::test_an_error_closes_the_environment",
    ),
    (
        V,
        "values.shape[1:] == done.shape",
        "True",
        "test_rollout.py::test_a_forgotten_sum_or_squeeze_is_one_line",
    ),
    (D, "len(last_returns) == 20 and ", "", "test_runs.py::test_solved_is_a_mean_of_the_target_over_20_episodes"),
    (
        D,
        "agent.update_return_stats(returns, ",
        "agent.update_return_stats(advantages, ",
        "test_runs.py::test_statistics_cover_all_observations_and_returns",
    ),
    (
        D,
        "args.hidden_size, 1), gain=0)",
        "args.hidden_size, 1))",
        "test_agent.py::test_fresh_agent_is_close_to_uniform_and_has_values_of_0",
    ),
    (
        D,
        "self.return_std.item()",
        "self.return_std",
        "test_other_people.py::test_rewards_of_any_size_leave_sound_statistics",
    ),
    (D, "video | deepcopy(args.env_kwargs)", "video", "test_other_people.py::test_arguments_of_the_environment"),
    (
        D,
        "deepcopy(args.env_kwargs)",
        "args.env_kwargs",
        "test_other_people.py::test_an_environment_may_change_its_arguments",
    ),
    (D, ", flush_secs=1", "", "test_ends.py::test_a_lost_notice_does_not_delay_the_end"),
    (D, "1e-5 + 1e-3", "1e-3", "test_rollout.py::test_rounding_is_no_difference"),
    (D, ", num_steps=64", "", "test_other_people.py::test_an_evaluation_plays_few_episodes_too_many"),
    (
        D,
        "Path(args.log_dir, name)",
        'Path(f"{args.log_dir}/{name}")',
        "test_other_people.py::test_an_empty_log_dir_is_this_folder",
    ),
    (D, "            random.seed(args.seed)\n", "", "test_runs.py::test_an_evaluation_repeats_by_its_seed"),
    (V, "check(repr(kwargs) ==", "check(True or", "test_other_people.py::test_an_environment_may_change_its_arguments"),
    (
        D,
        "if not isinstance(env.observation_space, Box):",
        "if True:",
        "test_spaces.py::test_a_wrapper_may_scale_bytes_and_keep_their_space",
    ),
    (
        V,
        "if not isinstance(envs.single_observation_space, Box):",
        "if True:",
        "test_spaces.py::test_a_wrapper_may_scale_bytes_and_keep_their_space",
    ),
    (V, "*box.shape)", "-1)", "test_spaces.py::test_one_number_in_place_of_an_observation_is_not_spread_over_it"),
    (
        V,
        "obs, _ = self.env.reset(**kwargs)",
        "obs = self.env.reset(**kwargs)[0]",
        "test_vector.py::test_a_reset_of_old_gym_is_refused",
    ),
    (
        D,
        'info.pop("ppo_episode")',
        'info["ppo_episode"]',
        "test_other_people.py::test_nothing_in_an_info_stops_or_bends_a_run",
    ),
    (D, ', stats_key="ppo_episode"', "", "test_other_people.py::test_nothing_in_an_info_stops_or_bends_a_run"),
    (
        D,
        "signal.signal(each, signal.SIG_IGN)",
        "pass",
        "test_ends.py::test_a_second_signal_does_not_interrupt_the_saving",
    ),
    (D, "np.isfinite(np.float32(x))", "np.isfinite(x)", "test_rollout.py::test_nan_and_inf_end_the_program"),
    (
        D,
        'saved["args"]["env_id"] == args.env_id,',
        "True,",
        "test_checkpoints.py::test_what_does_not_fit_to_a_checkpoint_is_one_line",
    ),
    (
        D,
        ' | {"resume": None}',
        "",
        "test_checkpoints.py::test_a_checkpoint_of_a_resumed_run_loads_and_does_not_resume_itself",
    ),
    (
        D,
        "check(is_zipfile(checkpoint)",
        "check(Path(checkpoint).is_file()",
        "test_checkpoints.py::test_what_is_no_checkpoint_is_refused_in_one_line",
    ),
    (
        C,
        "high - low < 1e30",
        "np.isfinite(high) & np.isfinite(low)",
        "test_spaces.py::test_actions_are_scaled_to_finite_bounds",
    ),
    (
        C,
        "np.float64([space.low, space.high])",
        "np.array([space.low, space.high])",
        "test_spaces.py::test_actions_are_scaled_to_finite_bounds",
    ),
    (
        C,
        "np.log(1 - global_step / args.total_timesteps)",
        "np.log(fraction)",
        "test_update.py::test_noise_falls_no_faster_than_in_a_line_to_0_at_the_end",
    ),
    (
        C,
        "float(args.log_std_init)",
        "args.log_std_init",
        "test_update.py::test_noise_falls_no_faster_than_in_a_line_to_0_at_the_end",
    ),
    (
        C,
        'isinstance(getattr(agent, "log_std", None), nn.Parameter)',
        "True",
        "test_update.py::test_noise_that_is_no_parameter_stays",
    ),
    (
        V,
        "clamp_(min=args.log_std_init",
        "clamp_(min=-99 + args.log_std_init",
        "test_update.py::test_noise_falls_no_faster_than_in_a_line_to_0_at_the_end",
    ),
    (
        C,
        "clamp_(min=args.log_std_init",
        "clamp_(min=-99 + args.log_std_init",
        "test_update.py::test_noise_falls_no_faster_than_in_a_line_to_0_at_the_end",
    ),
    (D, "start + a", "a", "test_spaces.py::test_every_combination_can_be_chosen_and_no_other"),
    (
        D,
        "(start + a)",
        "(start + np.minimum(a, nvec - 2))",
        "test_spaces.py::test_every_combination_can_be_chosen_and_no_other",
    ),
    (
        D,
        ".flatten(1).sum(-1)\n        return",
        ".flatten(1)[:, 0]\n        return",
        "test_agent.py::test_parts_of_an_action_are_independent",
    ),
    (
        D,
        "unused.ravel()] = -1e3",
        "unused.ravel()] = -1",
        "test_agent.py::test_uneven_parts_have_their_own_choices_and_no_other",
    ),
    (V, "o.reshape(len(o)", "o.reshape(num_envs", "test_vector.py::test_native_observations_must_be_rows"),
    (
        D,
        'folder / "checkpoint.pt"',
        "Path(args.resume or folder / 'checkpoint.pt')",
        "test_checkpoints.py::test_a_run_that_is_resumed_from_a_copy_leaves_the_copy_alone",
    ),
    (D, "== entropies.shape ", "", "test_rollout.py::test_a_forgotten_sum_or_squeeze_is_one_line"),
    (
        V,
        "repr(kwargs) == before",
        "kwargs.items() >= args.env_kwargs.items()",
        "test_other_people.py::test_an_argument_may_be_anything",
    ),
    (
        V,
        '"rewards": rewards[valid]',
        '"rewards": rewards',
        "test_rollout.py::test_rows_are_the_transitions_of_a_native_vector_environment",
    ),
    (
        D,
        "env.reset(seed=int(rng.integers(2**31)))",
        "env.reset(seed=seed)",
        "test_runs.py::test_environment_and_actions_draw_different_numbers",
    ),
    (
        D,
        "np.mean(abs(outputs.max(-1)))",
        "abs(outputs).max()",
        "test_rollout.py::test_a_mask_does_not_hide_a_difference",
    ),
    (
        D,
        "np.mean(abs(outputs.max(-1)))",
        "np.median(abs(outputs))",
        "test_rollout.py::test_a_mask_does_not_hide_a_difference",
    ),
    (
        D,
        "np.mean(abs(outputs.max(-1)))",
        "np.median(abs(outputs.max(-1)))",
        "test_rollout.py::test_numpy_and_torch_agree_at_every_size_of_observations",
    ),
    (
        D,
        "if finished or global_step //",
        "if global_step //",
        "test_checkpoints.py::test_a_run_is_saved_before_its_evaluation_which_may_crash",
    ),
    (
        D,
        "(loss + grad_norm).isfinite()",
        "grad_norm.isfinite()",
        "test_update.py::test_a_loss_that_is_nan_stops_although_its_gradient_is_finite",
    ),
    (C, ".exp().cpu().numpy())", ".exp().cpu().numpy() ** 2)", "test_agent.py::test_samples_follow_the_distribution"),
    (
        C,
        "steps.append((obs, outputs, action,",
        "steps.append((obs, outputs, np.clip(action, -1, 1),",
        "test_rollout.py::test_rows_are_the_transitions_of_the_environment",
    ),
    (D, '"_lazy_init", ', "", "test_other_people.py::test_what_cannot_work_is_refused_in_words_that_help"),
    (C, "center + scale *", "scale *", "test_spaces.py::test_actions_are_scaled_to_finite_bounds"),
    (
        C,
        "np.where(bounded, low + scale, np.clip",
        "np.where(True, low + scale, np.clip",
        "test_spaces.py::test_actions_are_scaled_to_finite_bounds",
    ),
    (C, "np.clip(0, low, high))", "0)", "test_spaces.py::test_actions_are_scaled_to_finite_bounds"),
    (
        C,
        "policy.log_prob(actions).sum(-1)",
        "policy.log_prob(actions).mean(-1)",
        "test_agent.py::test_log_probabilities_and_entropies_are_those_of_the_formulas",
    ),
    (
        C,
        "            if args.norm_obs:",
        "            if False:",
        "test_learning.py::test_policy_finds_the_best_action",
    ),
    (V, "squares = average((obs", "squares = ((obs", "test_vector.py::test_two_processes_train_as_one_and_one_goes_on"),
    (V, "parameters = average(", "parameters = (", "test_vector.py::test_two_processes_train_as_one_and_one_goes_on"),
    (
        V,
        "truncated, ~done))",
        "truncated, done | True))",
        "test_vector.py::test_rollouts_follow_a_trace_written_by_hand",
    ),
    (
        V,
        "done = terminated | truncated",
        "done = terminated",
        "test_vector.py::test_rollouts_follow_a_trace_written_by_hand",
    ),
    (
        V,
        '"next_values": values[1:]',
        '"next_values": values[:-1]',
        "test_vector.py::test_rollouts_follow_a_trace_written_by_hand",
    ),
    (V, "default_rng([seed, rank])", "default_rng(seed)", "test_vector.py::test_no_two_environments_begin_alike"),
    (
        V,
        "self.num_steps // 2 *",
        "self.num_steps *",
        "test_vector.py::test_rollouts_too_small_for_their_minibatches_are_refused",
    ),
    (
        V,
        "= average(torch.tensor([centered",
        "= (torch.tensor([centered",
        "test_vector.py::test_two_processes_train_as_one_and_one_goes_on",
    ),
    (
        V,
        "        tensor /= dist.get_world_size()\n",
        "",
        "test_vector.py::test_two_processes_train_as_one_and_one_goes_on",
    ),
    (
        V,
        "            if args.norm_obs:",
        "            if False:",
        "test_vector.py::test_two_processes_train_as_one_and_one_goes_on",
    ),
    (
        V,
        "wrappers=wrappers, **kwargs",
        "wrappers=[], **kwargs",
        "test_vector.py::test_wrappers_of_one_environment_are_never_dropped",
    ),
    (
        V,
        ' if hasattr(envs.unwrapped, "step_async") else {}',
        "",
        "test_vector.py::test_a_native_environment_whose_close_takes_no_timeout_is_closed",
    ),
    (V, "ended.all() and ", "", "test_vector.py::test_short_episodes_alone_do_not_solve"),
    (V, '{"num_envs"} <= ', "", "test_checkpoints.py::test_a_checkpoint_of_another_script_is_one_line"),
    (V, 'hasattr(os, "fork")', "False", "test_vector.py::test_a_signal_in_a_long_step_of_an_asynchronous_environment"),
    (
        V,
        "suppress(BaseException)",
        "suppress(Exception)",
        "test_vector.py::test_a_signal_in_a_long_step_of_an_asynchronous_environment",
    ),
    (
        V,
        "        envs.closed = True",
        "        pass",
        "test_vector.py::test_a_signal_in_a_long_step_of_an_asynchronous_environment",
    ),
    (
        V,
        '{"vectorization_mode": args.vectorization_mode} | video | deepcopy(args.env_kwargs)',
        'video | deepcopy(args.env_kwargs) | {"vectorization_mode": args.vectorization_mode}',
        "test_vector.py::test_a_vectorization_mode_in_env_kwargs_holds",
    ),
    (
        D,
        'optimizer.load_state_dict(optimizer.state_dict() | {"param_groups": groups})',
        "pass",
        "test_checkpoints.py::test_a_changed_optimizer_is_not_changed_back_by_a_checkpoint",
    ),
    (
        D,
        'optimizer.load_state_dict(saved["optimizer"])',
        'optimizer.load_state_dict(optimizer.state_dict() | {"state": saved["optimizer"]["state"]})',
        "test_checkpoints.py::test_a_checkpoint_does_not_fit_an_optimizer_with_other_groups",
    ),
    (V, ', "mkdir")', ")", "test_other_people.py::test_what_cannot_work_is_refused_in_words_that_help"),
    (
        V,
        " or gym.__path__[0] in str(frames)",
        "",
        "test_other_people.py::test_an_error_of_the_environment_in_a_function_that_the_scripts_know_keeps_its_traceback",
    ),
    (D, " if args.numpy_actor}", "}", "test_rollout.py::test_weights_of_a_dtype_that_numpy_lacks_act_in_torch"),
    (
        V,
        'check([*saved["agent"]] == [*agent.state_dict()]',
        "check(True",
        "test_checkpoints.py::test_a_checkpoint_does_not_fit_layers_in_another_order",
    ),
    (
        V,
        'int(os.environ["RANK"]) if world_size > 1 else 0',
        'int(os.environ.get("RANK", 0))',
        "test_vector.py::test_a_rank_without_a_group_does_not_count",
    ),
    (V, "[*wrappers, DropInfo]", "wrappers", "test_other_people.py::test_nothing_in_an_info_stops_or_bends_a_run"),
    (D, "loss = policy_loss +", "loss = 0 * policy_loss +", "test_learning.py::test_policy_finds_the_best_action"),
    (C, "loss = policy_loss +", "loss = -policy_loss +", "test_learning.py::test_policy_finds_the_best_action"),
    (
        D,
        "            env = gym.wrappers.FlattenObservation(env)",
        "            env = gym.wrappers.TransformObservation(gym.wrappers.FlattenObservation(env), np.flip, None)",
        "test_spaces.py::test_observations_of_any_space_are_flattened_in_its_order",
    ),
    (
        V,
        '{"vectorization_mode": args.vectorization_mode} |',
        '{"vectorization_mode": args.vectorization_mode or "sync"} |',
        "test_vector.py::test_a_mode_is_obeyed_and_by_default_the_native_form_comes_first",
    ),
    (
        D,
        "len(returns) / (global_step + len(returns))",
        "len(returns) / (global_step - start_step + len(returns))",
        "test_checkpoints.py::test_a_resumed_run_goes_on_with_the_saved_statistics",
    ),
    (
        V,
        "global_step // batch_size % args",
        "global_step // args.num_steps % args",
        "test_checkpoints.py::test_checkpoints_are_written_every_so_many_iterations_and_at_the_end",
    ),
    (
        D,
        "            writer.flush()  # no gap after a kill\n",
        "",
        "test_checkpoints.py::test_a_checkpoint_has_no_point_that_is_not_yet_in_its_file",
    ),
    (
        V,
        "torch.manual_seed(seed)",
        "torch.manual_seed(seed + rank)",
        "test_vector.py::test_two_processes_train_as_one_and_one_goes_on",
    ),
    (
        V,
        "    random.seed(seed + rank)\n    np",
        "    random.seed(seed)\n    np",
        "test_vector.py::test_two_processes_train_as_one_and_one_goes_on",
    ),
    (
        V,
        "np.random.seed(seed + rank)",
        "np.random.seed(seed)",
        "test_vector.py::test_two_processes_train_as_one_and_one_goes_on",
    ),
    (
        V,
        "solved = average(torch.tensor(float(solved))) == 1",
        "solved = bool(solved)",
        "test_vector.py::test_a_run_is_solved_when_all_processes_say_so",
    ),
    (V, "average(epoch_kl) >", "epoch_kl >", "test_update.py::test_target_kl_is_compared_with_the_mean_over_processes"),
    (
        D,
        "obs = np.array(obs, np.float32)  #",
        "obs = np.asarray(obs, np.float32)  #",
        "test_rollout.py::test_an_environment_may_reuse_its_arrays",
    ),
    (
        C,
        "np.array(next_obs, np.float32)",
        "np.asarray(next_obs, np.float32)",
        "test_rollout.py::test_an_environment_may_reuse_its_arrays",
    ),
    (V, "np.array(reward)", "reward", "test_rollout.py::test_an_environment_may_reuse_its_arrays"),
    (
        D,
        "exist_ok=bool(saved)",
        "exist_ok=True",
        "test_runs.py::test_a_run_does_not_write_into_the_folder_of_another",
    ),
    (
        D,
        'with make_env(args, Path(checkpoint).parent / "videos") as',
        "with make_env(args) as",
        "test_runs.py::test_video",
    ),
    (
        D,
        "    agent.train()\n",
        "",
        "test_update.py::test_the_agent_acts_in_evaluation_mode_and_learns_in_training_mode",
    ),
    (D, '.replace("/", "_")', "", "test_runs.py::test_the_name_of_an_environment_makes_one_folder"),
    (D, '.replace(":", "_")', "", "test_runs.py::test_the_name_of_an_environment_makes_one_folder"),
    (
        D,
        " hidden_size checkpoint",
        " checkpoint",
        "test_other_people.py::test_sizes_and_rates_of_0_are_refused",
    ),
    (
        D,
        " clip_coef max",
        " max",
        "test_other_people.py::test_sizes_and_rates_of_0_are_refused",
    ),
    (D, "self.seed < 2**31", "self.seed", "test_other_people.py::test_what_cannot_work_is_refused_in_words_that_help"),
    (
        D,
        "            if episodes:\n",
        "            if True:\n",
        "test_runs.py::test_a_run_without_an_end_of_an_episode_has_no_returns",
    ),
    (
        D,
        "max(args.total_timesteps - global_step, 0)",
        "(args.total_timesteps - global_step)",
        "test_runs.py::test_progress_is_counted_in_steps_of_this_process",
    ),
    (
        D,
        "args.total_timesteps - global_step, 0) / sps",
        "args.total_timesteps - global_step, 0)",
        "test_runs.py::test_progress_is_counted_in_steps_of_this_process",
    ),
    (
        D,
        "sps = (global_step - start_step)",
        "sps = global_step",
        "test_runs.py::test_progress_is_counted_in_steps_of_this_process",
    ),
    (D, "{np.std(returns):.1f}", "{0:.1f}", "test_agent.py::test_evaluation_counts_its_first_episodes"),
    (D, "{rollout['obs'].abs().max():.2g}", "{1:.2g}", "test_update.py::test_a_gradient_that_is_nan_changes_nothing"),
    (
        D,
        "mean_return >= args.target_return",
        "mean_return > args.target_return",
        "test_runs.py::test_solved_is_a_mean_of_the_target_over_20_episodes",
    ),
    (D, "            np.random.seed(args.seed)\n", "", "test_runs.py::test_an_evaluation_repeats_by_its_seed"),
    (D, "seed=args.seed + 10**6", "seed=10**6", "test_runs.py::test_an_evaluation_repeats_by_its_seed"),
    (D, "    torch.set_num_threads(1)  # faster for small networks\n", "", "test_runs.py::test_a_run_takes_one_thread"),
    (D, "(returns.var() + 1e-12)", "returns.var()", "test_update.py::test_equal_returns_leave_the_metrics_finite"),
]


def survives(script, text, fault, test):
    """Whether the test passes on a copy of the repository with the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__"))
        source = (copy / f"{script}.py").read_text()
        (copy / f"{script}.py").write_text(source.replace(text, fault))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
        if not test.startswith("test_vector.py"):
            command += ["-k", script]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        if result.returncode not in (0, 1):
            sys.exit(f"{test} on {script} was not run:\n{result.stdout}")
        return result.returncode == 0


def main():
    numbers = [int(word) for word in sys.argv[1:]] or range(len(FAULTS))
    for script, text, *_ in FAULTS:
        if (ROOT / f"{script}.py").read_text().count(text) != 1:
            sys.exit(f"{script}.py has not one {text!r}")
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
