"""Runs command lines, each in a process of its own that has imported everything already.

To import JAX and TensorFlow takes seconds, which a hundred processes would each take anew. This one
imports them and starts no device; a command line is run in a fork of it, as `__main__`, so that its
flags, its streams and its exit code are those of a process of its own.

    python tests/fork_commands.py MODULE…       what to import

It reads a JSON object a line: `command` (train, or a module of convit_jax), `arguments`,
`environment`, and the files `stdout` and `stderr`; and answers each with the exit code.
"""

import atexit
import importlib
import json
import os
import runpy
import sys
import traceback


def run(request: dict) -> int:
    """Runs a command line in this process, which is about to end, and returns its exit code."""
    for descriptor, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), descriptor)
    os.environ |= request["environment"]
    command = request["command"]
    sys.argv = [command, *request["arguments"]]
    try:
        if command == "train":
            runpy.run_path("train.py", run_name="__main__")
        else:
            runpy.run_module(f"convit_jax.{command}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # As Python ends, without taking apart all that was imported, which takes a second.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    return code


def main() -> None:
    """Imports, says so, and runs what it is told until its input ends."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            os._exit(run(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
