"""The fault catalogue as data: what happens, what a person sees, which tests show it, which guard they need. Tests read it: every
number is here, every test exists, and every mutant (a guard taken out of the source) makes its test fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`tests`: file::function below tests/. `guard`: what they fail without. `lacking`: what is not shown yet, in words."""

    number: str
    happens: str
    seen: str
    tests: tuple[str, ...]
    guard: str
    lacking: str = ""


def _fault(number: str, happens: str, seen: str, tests: str, guard: str, lacking: str = "") -> Fault:
    return Fault(number, happens, seen, tuple(tests.split()), guard, lacking)


KILL, GRID, CKPT = "test_kill.py::", "faults/test_grid_kills.py::", "test_checkpoint_faults.py::"
HOST, FILES, DAMAGE = "test_hostile_plugins.py::", "test_files.py::", "test_store_damage.py::"
DISKS = "faults/test_disks.py::"
VALUES = "test_store_values.py::"
STORE, YAML, JOB = "test_store_faults.py::", "test_spec_yaml.py::", "test_job.py::"
CLAIM, FENCE, LAUNCH = "test_claims.py::", "test_claims_fence.py::", "test_launch.py::"
ANYWHERE = KILL + "test_killed_anywhere_and_run_again_equals_uninterrupted"
WHOLE_GRID = GRID + "test_a_grid_killed_anywhere_ends_in_one_full_set"
HOSTILE = HOST + "test_a_hostile_cell_fails_with_its_cause"
UNTOUCHED = HOST + "test_the_next_cell_of_the_same_process_is_untouched"
SLURM, GUARDS, SUBMIT = "test_slurm_task.py::", "test_slurm_guards.py::", "test_submit.py::"
SUBMITTED, ARRAYS = "test_slurm_evaluations.py::", "test_slurm_arrays.py::"

FAULTS = (
    # --- kill and resume ---
    _fault("F01", "SIGKILL at a random time", "resuming from step k; equal bytes in the end",
           f"{ANYWHERE} {WHOLE_GRID}", "stateless randomness, records before checkpoints"),
    _fault("F02", "SIGKILL inside a checkpoint's write", "the checkpoint before is used",
           f"{CKPT}test_save_killed_at_every_call {CKPT}test_prune_killed_at_every_call", "write beside, rename"),
    _fault("F03", "SIGKILL between record and checkpoint", "no record is missing, none is double",
           f"{ANYWHERE} {STORE}test_put_record_killed_at_every_call", "the order of commits in stages/train.py"),
    _fault("F04", "many interruptions within one epoch", "the same order of images",
           "test_order.py::test_any_interruption_leaves_the_order_alone", "the order is a function of the step"),
    _fault("F05", "preempted faster than a first checkpoint", "failed: no-progress, with the key to set",
           f"{SLURM}test_a_job_that_keeps_nothing_start_after_start_ends {GUARDS}test_three_starts_that_keep_nothing_are_enough "
           f"{GUARDS}test_a_time_limit_that_is_too_short_is_called_so "
           f"{GUARDS}test_what_is_kept_are_steps_in_checkpoints_and_images_measured", "launch/slurm/headway.py"),
    _fault("F06", "SIGTERM, SIGINT, SIGHUP at any time", "stopping at the next step boundary; once more kills",
           f"{LAUNCH}test_one_signal_stops_at_a_step_boundary {LAUNCH}test_a_second_signal_kills "
           "faults/test_code_rules.py::test_signal_handlers_only_take_note", "handlers only take note"),
    _fault("F07", "grace shorter than a save", "the last checkpoint counts; WARNING: took N s, set signal_seconds: M",
           f"{ANYWHERE} {SLURM}test_a_step_that_was_killed_whole_is_written_down_by_whoever_looks "
           f"{DISKS}test_a_save_that_the_warning_leaves_no_time_for_is_said_once_with_what_to_set",
           "a half-written one never counts; each save is timed against the warning"),
    _fault("F08", "preemption, requeue, scancel, time limit, node loss", "status says which; what was computed is kept",
           f"{CLAIM}test_a_requeued_job_replaces_its_former_self_at_once {SLURM}test_a_preempted_job_saves_requeues_itself_and_goes_on "
           f"{SLURM}test_after_a_bare_sigterm_a_job_saves_and_waits_and_slurm_requeues_it "
           f"{SLURM}test_a_job_at_its_time_limit_saves_and_goes_on {SLURM}test_a_job_that_somebody_requeues_goes_on "
           f"{SLURM}test_a_node_that_is_lost_while_its_job_runs_on_leaves_one_set_of_records "
           f"{SLURM}test_what_its_user_cancelled_stays_cancelled {SLURM}test_a_rank_that_dies_ends_the_job_and_the_cell_goes_on "
           f"{SUBMIT}test_a_signal_before_python_listens_ends_no_job {SUBMITTED}test_what_another_rank_was_told_to_stop_is_not_over",
           "signals heeded at step boundaries; restart counts in claims"),
    _fault("F09", "a worker is killed for its memory", "was killed by SIGKILL (out of memory, perhaps) at step k",
           f"{LAUNCH}test_a_worker_that_ends_badly_is_one_failed_stage {WHOLE_GRID} "
           f"{SLURM}test_a_killed_worker_is_written_down_and_the_cell_goes_on_when_it_is_sent_again "
           f"{GUARDS}test_a_worker_that_the_kernel_killed_for_memory_is_of_that_class "
           "test_slurm_memory.py::test_a_job_that_is_killed_for_its_memory_goes_on_with_a_smaller_micro_batch "
           "test_slurm_memory.py::test_a_worker_that_the_kernel_kills_in_its_control_group_is_of_class_oom", "the driver writes its failure"),
    _fault("F10", "out of memory in a step", "failed: oom, with its message",
           f"{HOSTILE} {JOB}test_failures_are_classed_and_say_why "
           f"{SUBMIT}test_a_cell_without_memory_goes_on_with_a_smaller_micro_batch", "failure_cause()"),
    _fault("F11", "stale or cut submission pickles", "nothing: each start writes its call anew",
           f"{GUARDS}test_a_job_runs_the_call_of_its_script_whatever_lies_in_its_place "
           f"{GUARDS}test_a_job_whose_call_cannot_be_written_does_not_begin", "sbatch._setup()"),
    _fault("F12", "resumed with other threads or another torch", "threads, device and versions in the record",
           f"{JOB}test_a_cell_leaves_records_that_say_everything", "the envelope"),
    _fault("F13", "another number of ranks", "the same cell, up to rounding; refused where it cannot be shared",
           "test_distributed_job.py::test_one_process_goes_on_where_two_ranks_stopped "
           "test_distributed.py::test_local_batches_are_shared_evenly_or_not_at_all", "shards by local batch"),
    _fault("F14", "a checkpoint of another cell or a newer format", "both ids, or both versions",
           "test_checkpoint.py::test_another_runs_checkpoint_is_refused "
           "test_checkpoint.py::test_a_newer_format_is_refused", "ids and format in the manifest"),
    # --- corruption and storage ---
    _fault("F20", "a cut checkpoint", "is damaged (why) and was set aside; resuming from step j",
           f"{CKPT}test_every_mutation_is_noticed test_checkpoint.py::test_all_damaged_stops_and_stays_stopped "
           f"{JOB}test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used", "sha256 of every file"),
    _fault("F21", "flipped bits, holes, swapped parts", "as F20",
           f"{CKPT}test_after_any_mutation_the_previous_one_is_used "
           "test_checkpoint.py::test_parts_of_another_step_are_noticed", "sha256 of every file"),
    _fault("F22", "power loss, a disk that lies", "found out at once",
           f"{FILES}test_data_is_durable_before_its_name_and_the_name_before_the_answer "
           f"{CKPT}test_a_disk_that_lies_is_found_out_at_once "
           f"{DISKS}test_a_power_loss_at_any_moment_leaves_the_old_checkpoint_or_the_new "
           f"{DISKS}test_a_power_loss_at_any_moment_loses_no_record_that_was_said_to_be_kept",
           "fsync of data, name and folder before the answer; read back after it"),
    _fault("F23", "disk full, quota, size limit", "cannot write PATH: bytes needed and free, and what to do",
           f"{FILES}test_a_full_disk_is_an_error_that_teaches_and_leaves_nothing "
           f"{CKPT}test_disks_of_every_size_keep_the_last_checkpoint {CKPT}test_save_meets_disk_errors "
           f"{FILES}test_a_file_size_limit_is_told {LAUNCH}test_a_full_disk_stops_the_run_instead_of_failing_every_cell "
           f"{DISKS}test_what_has_no_room_is_refused_before_it_begins", "StorageProblem; the run ends; refusing.room()"),
    _fault("F24", "no inodes", "no inodes are left (of N)",
           f"{FILES}test_read_only_and_inodeless_disks_are_refused_at_once", "statvfs in the message"),
    _fault("F25", "read-only or forbidden folder", "refused before training, with the variable to set",
           f"{FILES}test_read_only_and_inodeless_disks_are_refused_at_once {FILES}test_no_permission_is_told",
           "the probe when a store is opened"),
    _fault("F26", "ESTALE, EIO, lost replies", "nothing: tried again under a new name",
           f"{FILES}test_a_passing_error_is_ridden_out {FILES}test_after_a_failed_fsync_the_data_goes_to_a_new_file "
           f"{FILES}test_lost_reply_of_link_counts_as_made", "_insist() and the link count"),
    _fault("F27", "short writes", "whole files", f"{FILES}test_short_writes_are_completed", "the loop around write()"),
    _fault("F28", "a node sees old directories for a minute", "no takeover of a living owner; nothing is missing that is there",
           f"{CLAIM}test_a_beat_that_comes_at_the_last_look_counts "
           f"{DISKS}test_a_name_that_this_node_does_not_see_yet_is_asked_for_at_the_server",
           "a last look after a change of our own: files.ask_server()"),
    _fault("F29", "a file server that hangs", "the store has not answered for N s; or the worker has said nothing, its stacks are in LOG",
           f"{LAUNCH}test_a_silent_worker_is_named_and_then_killed {DISKS}test_work_goes_on_while_the_store_hangs_and_says_so",
           "heartbeats are written beside the work; the driver's watch"),
    _fault("F30", "old checkpoints go while somebody reads", "two sound ones stay, milestones stay",
           "test_checkpoint.py::test_pruning_keeps_two_sound_ones "
           "test_checkpoint.py::test_milestones_stay_and_are_verified", "keep >= 2; evaluations read milestones"),
    # --- concurrency and store ---
    _fault("F40", "many writers", "nothing lost, doubled or torn",
           f"{STORE}test_eight_writers_lose_tear_and_double_nothing {FILES}test_one_of_many_writers_wins", "link()"),
    _fault("F41", "writers killed among others", "others go on; the leftover is swept",
           f"{STORE}test_killed_writers_disturb_neither_writers_nor_readers {FILES}test_sweep_takes_the_dead_and_leaves_the_living "
           f"{DISKS}test_what_a_killed_process_left_beside_complete_results_is_swept", "one file per record; Run.sweep()"),
    _fault("F42", "one cell started twice; a zombie", "running on HOST (attempt n, pid, last beat); the zombie writes nothing",
           f"{CLAIM}test_the_second_is_told_who_works {CLAIM}test_exactly_one_owner_per_stage "
           f"{FENCE}test_a_stopped_owner_that_wakes_up_is_ignored test_cli_live.py::test_two_runs_at_once_share_the_work",
           "claims and the reader's fence"),
    _fault("F43", "clocks that differ or jump", "the same", f"{CLAIM}test_no_wall_clock_decides", "monotonic clocks only"),
    _fault("F44", "two records of one thing", "a conflict counts for nothing; of two attempts the later counts",
           f"{DAMAGE}test_two_bodies_of_one_attempt_are_a_conflict {DAMAGE}test_the_later_attempt_counts_and_the_older_is_listed",
           "settle()"),
    _fault("F45", "rubbish among records: half, NaN, FIFO, link, newer, huge", "skipped and listed with its reason",
           f"{DAMAGE}test_a_damaged_record_is_skipped_and_listed {DAMAGE}test_every_mutation_of_a_record_is_noticed "
           f"{FILES}test_read_regular_refuses_what_could_block_or_mislead test_report.py::test_what_could_not_be_read_is_said_below_the_table",
           "seals; O_NONBLOCK and O_NOFOLLOW"),
    _fault("F46", "other listing order, locale, hash seed", "equal bytes",
           "test_report_views.py::test_equal_records_give_equal_files_whatever_the_order_the_hash_seed_and_the_locale",
           "everything is sorted"),
    _fault("F47", "very many records", "a table in bounded time",
           "test_plan.py::test_a_plan_of_a_full_store_finds_every_cell_done "
           f"{VALUES}test_values_are_a_fold_over_the_records_and_no_record_is_read_for_them "
           f"{VALUES}test_what_is_kept_changes_no_look_whatever_happens "
           f"{VALUES}test_of_a_damaged_segment_nothing_damaged_is_told",
           "one look per folder; what records say is kept beside their marks (store/values.py); bench/report.py many"),
    _fault("F48", "code changed after results", "stale, with what changed; a comment changes nothing",
           "test_provenance.py::test_a_change_touches_its_component_and_is_named "
           "test_provenance.py::test_a_comment_a_docstring_and_layout_change_nothing", "digests over syntax trees"),
    _fault("F49", "seeds missing", "n/N, named below the table",
           "test_report.py::test_missing_seeds_are_counted_named_and_explained", "the plan beside the records"),
    # --- plugins and numerics ---
    _fault("F60", "a plugin raises", "failed: plugin, its error; other cells go on",
           f"{HOSTILE} {HOST}test_healthy_cells_are_as_if_they_were_alone", "run_job() and the launcher"),
    _fault("F61", "a plugin hangs or floods", "hung: no word for N s; the log is full",
           f"{HOSTILE} {LAUNCH}test_a_silent_worker_is_named_and_then_killed {LAUNCH}test_the_log_is_capped",
           "the driver's watch; LOG_CAP"),
    _fault("F62", "NaN, wrong shapes and types", "non-finite loss or gradient at step k; weights untouched",
           "test_trainer.py::test_a_loss_that_is_not_finite_stops_before_the_weights_and_keeps_the_evidence "
           f"test_trainer.py::test_a_transient_fault_is_run_again_and_leaves_no_trace {HOSTILE}", "the check before the optimiser"),
    _fault("F63", "a loss that grows late", "kept in the mean; a footnote says how many times its lowest the loss is",
           "test_trainer.py::test_the_curve_holds_group_means_of_per_image_terms "
           "test_report_diverged.py::test_a_loss_has_grown_where_its_end_is_far_above_its_lowest "
           "test_report_diverged.py::test_it_is_a_footnote_of_its_row_and_counts_in_the_mean", "report/diverged.py"),
    _fault("F64", "a plugin writes into its batch", "nothing, or a failed row of methods check",
           f"{UNTOUCHED} test_methods_conformance.py::test_the_draw_is_left_as_it_was", "fresh draws; the check"),
    _fault("F65", "a plugin changes global state", "changed torch's default dtype from .. to ..; or put back",
           f"{HOSTILE} {UNTOUCHED}", "guard.Guard"),
    _fault("F66", "state that a checkpoint cannot hold", "refused where it is saved",
           "test_checkpoint.py::test_a_state_that_json_cannot_hold_is_refused "
           "test_methods_engine.py::test_cut_and_continued_equals_uninterrupted_bit_for_bit", "tensors and JSON only"),
    _fault("F67", "a plugin exits, forks, leaves children", "exited with code c; children are killed",
           f"{HOSTILE} {LAUNCH}test_children_of_a_dead_worker_are_killed "
           f"{LAUNCH}test_a_forked_child_does_not_become_a_second_worker", "process groups; Guard.leave_fork"),
    _fault("F68", "half precision after a resume", "bf16 needs no scaler: there is no state to lose",
           "test_methods_conformance.py::test_bfloat16_passes_give_float32_terms", "no scaler, no compile"),
    # --- hostile input and leaks ---
    _fault("F80", "YAML bombs, tags, depth, duplicates, NUL", "file:line:column and one sentence",
           f"{YAML}test_hostile_text_is_one_error {YAML}test_the_anchor_bomb_of_305_bytes_is_refused", "yaml_io"),
    _fault("F81", "YAML 1.1's traps", "the value that was meant",
           f"{YAML}test_scalars_mean_what_yaml_1_2_says", "scalar()"),
    _fault("F82", "unknown keys, wrong types, a billion cells", "every mistake with its place and what is allowed",
           "test_spec.py::test_a_mistake_is_one_problem_at_its_place "
           "test_spec.py::test_a_grid_of_a_billion_cells_is_refused_before_it_is_built", "the models; MAX_CELLS"),
    _fault("F83", "names that lead elsewhere", "refused by a rule; nothing outside is opened",
           "faults/test_hostile_names.py::test_every_hostile_name_is_refused_in_words_and_quickly "
           "faults/test_hostile_names.py::test_no_hostile_name_opens_anything_outside", "one pattern per kind of name"),
    _fault("F84", "markup, formulas, escapes in labels", "the literal text in every view",
           "test_report_views.py::test_html_holds_no_tag_or_attribute_from_a_label "
           "test_report_views.py::test_latex_holds_no_command_or_column_from_a_label "
           "test_report_views.py::test_csv_starts_no_formula_and_keeps_its_columns "
           "test_report_views.py::test_the_terminal_prints_no_escape_and_no_markup_of_a_label "
           "faults/test_hostile_names.py::test_every_hostile_name_is_refused_in_words_and_quickly", "escaping per view; output.safe()"),
    _fault("F85", "pickles that act", "named, and not run",
           "faults/test_code_rules.py::test_nothing_is_unpickled_freely test_checkpoint.py::test_nothing_is_unpickled "
           "test_external.py::test_code_in_a_file_is_named_and_not_run "
           "test_cifar.py::test_a_planted_pickle_is_refused_by_name_and_runs_nothing", "weights_only; safetensors"),
    _fault("F86", "secrets in the environment, remotes, tracebacks", "[hidden]",
           "faults/test_secrets.py::test_no_planted_secret_reaches_a_file_or_the_output "
           "test_provenance.py::test_remotes_lose_their_credentials test_provenance.py::test_only_listed_variables_are_kept "
           f"{GUARDS}test_no_secret_reaches_a_jobs_log_or_files {SUBMIT}test_a_cell_without_memory_goes_on_with_a_smaller_micro_batch",
           "ltbench/redact.py"),
    _fault("F87", "folders that others may change", "warning: everybody on this machine may write into FOLDER",
           "faults/test_hostile_names.py::test_a_folder_that_everybody_may_write_is_told_at_the_start "
           "faults/test_hostile_names.py::test_a_folder_of_somebody_else_is_told "
           f"{GUARDS}test_a_job_runs_the_call_of_its_script_whatever_lies_in_its_place", "files.exposure(); sbatch._setup()"),
)  # fmt: skip

NUMBERS = {
    *(f"F{n:02d}" for n in range(1, 15)),
    *(f"F{n}" for n in range(20, 31)),
    *(f"F{n}" for n in range(40, 50)),
    *(f"F{n}" for n in range(60, 69)),
    *(f"F{n}" for n in range(80, 88)),
}


@dataclass(frozen=True)
class Mutant:
    """A guard out of `module`: `old` becomes `new` in its source, and `test` must fail."""

    faults: str
    module: str
    old: str
    new: str
    test: str

    @property
    def name(self) -> str:
        return f"{self.faults}: {self.old.split(chr(10))[0].strip()[:50]}"


M = Mutant
MUTANTS = (
    M("F22", "ltbench.files.writing", "            if durable:\n                os.fsync(handle)", "            pass",
      FILES + "test_data_is_durable_before_its_name_and_the_name_before_the_answer"),
    M("F22", "ltbench.files.writing", "            if durable:\n                os.fsync(handle)", "            pass",
      DISKS + "test_a_power_loss_at_any_moment_leaves_the_old_checkpoint_or_the_new"),
    M("F22", "ltbench.files.writing", "            os.fsync(handle)\n        except OSError as error:\n            if (", "            pass\n        except OSError as error:\n            if (",
      DISKS + "test_a_power_loss_at_any_moment_loses_no_record_that_was_said_to_be_kept"),
    M("F47", "ltbench.store.values", "known[0] != mark(found) or ", "", VALUES + "test_what_is_kept_changes_no_look_whatever_happens"),
    M("F47", "ltbench.store.values", "if zlib.crc32(data[middle:at], zlib.crc32(data[begin:middle])) != check:", "if False:",
      VALUES + "test_of_a_damaged_segment_nothing_damaged_is_told"),
    M("F23", "ltbench.cli.refusing", "        if needed > free:", "        if False:", DISKS + "test_what_has_no_room_is_refused_before_it_begins"),
    M("F28", "ltbench.files.folders", "    ask_server(path.parent)\n    return not", "    return not",
      DISKS + "test_a_name_that_this_node_does_not_see_yet_is_asked_for_at_the_server"),
    M("F41", "ltbench.cli.due", "    if house.write:\n", "    if False:\n", DISKS + "test_what_a_killed_process_left_beside_complete_results_is_swept"),
    M("F29", "ltbench.store.claims", "if self._beside not in (None, threading.current_thread()):", "if False:",
      DISKS + "test_work_goes_on_while_the_store_hangs_and_says_so"),
    M("F07", "ltbench.stages.train", "if grace is None or SAFE * took <= grace or self.warned:", "if grace is None or self.warned or True:",
      DISKS + "test_a_save_that_the_warning_leaves_no_time_for_is_said_once_with_what_to_set"),
    M("F05", "ltbench.launch.slurm.headway", r'r"step-(\d+)(\.a\d+)?"', r'r"step-(\d+)"',
      GUARDS + "test_what_is_kept_are_steps_in_checkpoints_and_images_measured"),
    M("F08", "ltbench.launch.slurm.sbatch", 'f"{DEAF} {_interpreter', 'f"{_interpreter', ARRAYS + "test_the_script_asks_for_what_the_profile_says"),
    M("F08", "ltbench.launch.slurm.task", '        if stopped:', '        if stopped and self.heard():',
      SUBMITTED + "test_what_another_rank_was_told_to_stop_is_not_over"),
    M("F63", "ltbench.report.diverged", "or levels[-1] < GREW * levels[lowest]", "or True",
      "test_report_diverged.py::test_it_is_a_footnote_of_its_row_and_counts_in_the_mean"),
    M("F27", "ltbench.files.writing", "            while rest:\n                rest = rest[os.write(handle, rest) :]",
      "            os.write(handle, rest)", FILES + "test_short_writes_are_completed"),
    M("F26", "ltbench.files.problems", "error.errno not in _TRANSIENT or pause is None:\n                raise StorageProblem", "True:\n                raise StorageProblem",
      FILES + "test_a_passing_error_is_ridden_out"),
    M("F26", "ltbench.files.writing", "if os.stat(temporary).st_nlink == 2:", "if False:", FILES + "test_lost_reply_of_link_counts_as_made"),
    M("F23", "ltbench.files.writing", "    except OSError:\n        discard(path)\n        raise", "    except OSError:\n        raise",
      FILES + "test_a_full_disk_is_an_error_that_teaches_and_leaves_nothing"),
    M("F45", "ltbench.files.reading", "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_RDONLY | os.O_NONBLOCK",
      FILES + "test_read_regular_refuses_what_could_block_or_mislead"),
    M("F41", "ltbench.files.leftovers", "gone = match", "gone = False and match", FILES + "test_sweep_takes_the_dead_and_leaves_the_living"),
    M("F45", "ltbench.store.sealed", '!= files.sha256_bytes(text).encode() + b\'"}\'', "is None", DAMAGE + "test_every_mutation_of_a_record_is_noticed"),
    M("F44", "ltbench.store.records", "if record.attempt == latest]", "]", DAMAGE + "test_the_later_attempt_counts_and_the_older_is_listed"),
    M("F44", "ltbench.store.records", "settled if len(winners) == 1 else settled.conflicts", "settled",
      DAMAGE + "test_two_bodies_of_one_attempt_are_a_conflict"),
    M("F42", "ltbench.store.claims", "if now.alive is not False:", "if False:", CLAIM + "test_the_second_is_told_who_works"),
    M("F42", "ltbench.store.fence", "return inherited is None or record.path.name in inherited", "return True",
      FENCE + "test_a_stopped_owner_that_wakes_up_is_ignored"),
    M("F28", "ltbench.store.claims", "if not now.same_kernel and _beat_moved(folder, stage, now):", "if False:",
      CLAIM + "test_a_beat_that_comes_at_the_last_look_counts"),
    M("F80", "ltbench.spec.yaml_io", "        if event.anchor:", "        if False:", YAML + "test_hostile_text_is_one_error"),
    M("F80", "ltbench.spec.yaml_io", "if len(self._stack) >= MAX_DEPTH:", "if False:", YAML + "test_hostile_text_is_one_error"),
    M("F81", "ltbench.spec.yaml_io", "return int(text) if _INT.fullmatch(text) else int(text, 0)", "return int(text, 8)",
      YAML + "test_scalars_mean_what_yaml_1_2_says"),
    M("F20", "ltbench.checkpoint", 'if sha256 != told["sha256"]:', "if False:", CKPT + "test_every_mutation_is_noticed"),
    M("F30", "ltbench.checkpoint", "    if keep < 2:", "    if False:", "test_checkpoint.py::test_pruning_keeps_two_sound_ones"),
    M("F62", "ltbench.trainer", "if repaired := made.verdict.read():", "if repaired := False:",
      "test_trainer.py::test_a_loss_that_is_not_finite_stops_before_the_weights_and_keeps_the_evidence"),
    M("F61", "ltbench.launch.process", "self._file.write(data[: self._left])", "self._file.write(data)", LAUNCH + "test_the_log_is_capped"),
    M("F67", "ltbench.launch.process", "os.killpg(self._process.pid, signal.SIGKILL)", "os.kill(self._process.pid, 0)",
      LAUNCH + "test_children_of_a_dead_worker_are_killed"),
    M("F87", "ltbench.files.folders", "if found.st_mode & stat.S_IWOTH:", "if False:",
      "faults/test_hostile_names.py::test_a_folder_that_everybody_may_write_is_told_at_the_start"),
)  # fmt: skip
