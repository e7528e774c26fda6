"""Paths as people type them."""

import os

from etils import epath


def expand_home(name: str | os.PathLike[str]) -> str:
    """A path with `~` and `~USER` at its beginning as the home directory that they stand for.

    The shell does that only where they begin a word: not in `--workdir=~/runs`, and not in
    `folder:~/images`. Addresses such as gs://BUCKET stay as they are.
    """
    return os.path.expanduser(name)  # noqa: PTH111  (a path object would fold the // of gs://)


def user_path(name: str | os.PathLike[str]) -> epath.Path:
    """The path that a person named, local or gs://."""
    return epath.Path(expand_home(name))
