"""What went wrong, in one sentence that says how to mend it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave: a flag, a config, data, weights or a workdir.

    Its message is one clear sentence (what was wrong, where, what was expected). Commands print
    it without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on, through no mistake in what it was given.

    Its message is one clear sentence. Commands print it without a traceback and exit with code 1.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Names the choices closest to a misspelt `name`.

    Args:
        name: what the user wrote.
        choices: everything that would have been valid.

    Returns:
        "did you mean 'x'?" where one choice is close, otherwise "expected one of a, b, c".
    """
    choices = sorted(choices)
    # Names here are lower case throughout, so case never tells two of them apart.
    close = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"expected one of {', '.join(choices)}"
