"""Train a model:

    python -m convit_jax.train --config configs/digits.py --workdir /tmp/digits

`python train.py` is the same, in a checkout. The workdir receives config.json, checkpoints/,
metrics.jsonl and TensorBoard events. The same command again resumes from the newest checkpoint.
SIGTERM and Ctrl-C save first.
"""

# Slow imports follow once the flags are known to be right.
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say; return an exit code."""
    from convit_jax.console import command_line  # noqa: PLC0415

    parser = command_line.Parser(
        prog="train.py",
        description=__doc__,
        epilog=f"Keys that --config.key=value sets:\n\n{command_line.describe_keys()}",
    )
    command_line.add_config_flag(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run's directory, created if missing; by default runs/NAME, named after --config",
    )
    arguments, settings = command_line.parse(parser, argv)
    if arguments.workdir == "":
        raise command_line.InputError("expected --workdir=DIR, a directory for the run")
    config = command_line.read_config(arguments, settings)
    # TensorFlow, which writes the events, would log about the CPU; it takes seconds to import.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"} | os.environ
    from convit_jax.distributed import processes  # noqa: PLC0415
    from convit_jax.system.cache import keep_compiled_programs  # noqa: PLC0415
    from convit_jax.training import loop  # noqa: PLC0415
    from convit_jax.training.checkpoints import silence_checkpoint_logging  # noqa: PLC0415
    from convit_jax.training.workdir import default_workdir  # noqa: PLC0415

    workdir = arguments.workdir
    if workdir is None:
        workdir = default_workdir(arguments.config)
        command_line.print_message("train", f"no --workdir: the run's directory is {workdir}")
    silence_checkpoint_logging()
    processes.join_processes()
    keep_compiled_programs()
    with processes.ending_all_on_failure():
        outcome = loop.train(config, workdir)
    # The shell's exit code after a signal: launchers restart such a run.
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def run_program() -> NoReturn:
    """Run the command as this process, and end it."""
    from convit_jax.system.huge_pages import restart_with_huge_pages  # noqa: PLC0415

    restart_with_huge_pages()
    from convit_jax.console.command_line import run  # noqa: PLC0415

    try:
        code = run("train", main)
    except Exception:  # a defect of this program: a traceback, and exit code 1
        sys.excepthook(*sys.exc_info())
        code = 1
    # The import of JAX takes seconds; a mistake in the flags ends before it.
    if "jax" in sys.modules:
        from convit_jax.distributed.processes import exit_process  # noqa: PLC0415

        exit_process(code)
    sys.exit(code)


if __name__ == "__main__":
    run_program()
