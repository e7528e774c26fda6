"""Run Python programs, each in a forked process that has imported everything already.

Importing JAX and TensorFlow takes seconds, for each of hundreds of processes. This process imports
them once and starts no device; each program runs in a fork of it, as `__main__`, with its own
flags, streams, working directory and exit code.

    python tests/fork_commands.py MODULE…       modules to import

It reads JSON objects, one a line: `command` (what follows `python` on a command line: a file or
`-m MODULE`, and arguments), `environment`, the files `stdout` and `stderr`, and possibly
`directory`; it answers each with the exit code. `fork_server` starts it.
"""

import atexit
import contextlib
import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def fork_server(modules, directory, **environment: str) -> Iterator[Callable[..., int]]:
    """Start this program; yield a function of a request's fields that returns the exit code."""
    # No command restarts itself for huge pages.
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | environment
    with subprocess.Popen(
        [sys.executable, __file__, *modules], cwd=directory, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"

        def run(**request) -> int:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


def run(request: dict) -> int:
    """Run a program in this forked process and return its exit code."""
    for descriptor, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), descriptor)
    os.chdir(request.get("directory", "."))
    os.environ |= request["environment"]
    file, *arguments = request["command"]
    try:
        if file == "-m":
            sys.argv, sys.path[0] = arguments, str(pathlib.Path.cwd())
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [file, *arguments], str(pathlib.Path(file).resolve().parent)
            runpy.run_path(file, run_name="__main__")
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
    """Import the modules, print "ready", and run programs until the input ends."""
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
