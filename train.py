"""Trains a model: python train.py --config configs/digits.py --workdir /tmp/digits

The workdir receives config.json, checkpoints/, metrics.jsonl and TensorBoard events. The same
command again resumes from the newest checkpoint. SIGTERM and Ctrl-C save first.
"""

# What is heavy is imported once the flags are known to be right.
import os
import sys


def main() -> int:
    """Trains as the flags say; returns an exit code."""
    from absl import flags  # noqa: PLC0415

    from convit_jax.console import command_line  # noqa: PLC0415

    workdir = flags.DEFINE_string("workdir", None, "Directory of the run; made if not there.")
    if {"--help", "-h", "-help"} & set(sys.argv):
        print(f"{__doc__}\nFlags:\n\n--config=configs/FILE.py[:ARGUMENTS]\n--workdir=DIR\n")
        print(command_line.describe_keys())
        return 0
    overrides = command_line.parse(sys.argv)
    if not workdir.value:
        raise command_line.InputError("expected --workdir=DIR, a directory for the run")
    config = command_line.read_config(overrides)
    # Imported once the flags are known to be right: it takes seconds, for TensorFlow, which
    # writes the events and is to keep its remarks on the CPU to itself.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"} | os.environ
    from convit_jax.distributed.processes import ending_all_on_failure, join_processes  # noqa: PLC0415
    from convit_jax.system.cache import keep_compiled_programs  # noqa: PLC0415
    from convit_jax.training import loop  # noqa: PLC0415
    from convit_jax.training.checkpoints import silence_checkpoint_logging  # noqa: PLC0415

    silence_checkpoint_logging()
    join_processes()
    keep_compiled_programs()
    with ending_all_on_failure():
        outcome = loop.train(config, workdir.value)
    # Launchers restart what a signal ended: the shell's code for it.
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


if __name__ == "__main__":
    from convit_jax.system.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from convit_jax.console.command_line import run

    try:
        code = run("train", main)
    except Exception:  # a defect of this program: Python's words, and its code
        sys.excepthook(*sys.exc_info())
        code = 1
    # It imports JAX, which a mistake in the flags does without.
    if "jax" in sys.modules:
        from convit_jax.distributed.processes import exit_process

        exit_process(code)
    sys.exit(code)
