"""Run command lines, each in a forked process that has imported everything already.

Importing JAX and TensorFlow takes seconds, for each of hundreds of processes. This process imports
them once and starts no device; each command line runs in a fork of it, as `__main__`, with its own
flags, streams and exit code.

    python tests/fork_commands.py MODULE…       modules to import

It reads JSON objects, one a line: `command` (train, or a module of convit_jax), `arguments`,
`environment`, and the files `stdout` and `stderr`; it answers each with the exit code.
"""

import atexit
import importlib
import json
import os
import runpy
import sys
import traceback


def run(request: dict) -> int:
    """Run a command line in this forked process and return its exit code."""
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
    # End as Python does, but without the second that unloading all modules takes.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    return code


def main() -> None:
    """Import the modules, print "ready", and run command lines until the input ends."""
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
