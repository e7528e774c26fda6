import errno
import os
import struct

import pytest

from convit_jax.errors import (
    InputError,
    MachineError,
    RunError,
    boundary,
    first_line,
    machine_fault,
)


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires 4 bytes"),
        TypeError("not a number"),
        RuntimeError("decoder"),
        NotImplementedError(),
        KeyError("shape"),
        ZeroDivisionError("division by zero"),
        RecursionError("maximum depth"),
        OSError("no image"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
    ],
)
def test_whatever_is_raised_inside_names_the_culprit(error):
    with pytest.raises(InputError, match=r"^cat\.jpg cannot be read: \S"), boundary("cat.jpg"):
        raise error


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO, errno.ESTALE]
)
def test_a_fault_of_the_machine_is_not_the_files(code):
    with pytest.raises(MachineError, match=r"^cat\.jpg: \w"), boundary("cat.jpg"):
        raise OSError(code, os.strerror(code), "cat.jpg")


def test_the_words_of_a_library_tell_of_the_machine_too():
    assert "too many open files" in machine_fault(ValueError("open() failed: Too many open files"))
    wrapped = RuntimeError("cannot restore")
    wrapped.__cause__ = MemoryError()
    assert "memory" in machine_fault(wrapped)
    assert machine_fault(ValueError("bad magic number")) is None


@pytest.mark.parametrize("error", [InputError("one sentence"), RunError("one sentence")])
def test_sentences_of_our_own_pass_through(error):
    with pytest.raises(type(error), match=r"^one sentence$"), boundary("cat.jpg"):
        raise error


def test_a_signal_passes_through():
    with pytest.raises(KeyboardInterrupt), boundary("cat.jpg"):
        raise KeyboardInterrupt


def test_a_first_line_is_short_and_says_something():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    long = first_line(ValueError("/a/path" * 60 + ": the reason"))
    assert len(long) < 210
    assert long.endswith("the reason")
