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
    fitting_memory,
    in_one_line,
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
def test_any_exception_becomes_a_sentence_with_the_name(error):
    with pytest.raises(InputError, match=r"^cat\.jpg cannot be read: \S"), boundary("cat.jpg"):
        raise error


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO, errno.ESTALE]
)
def test_a_fault_of_the_machine_is_not_one_of_the_file(code):
    with pytest.raises(MachineError, match=r"^cat\.jpg: \w"), boundary("cat.jpg"):
        raise OSError(code, os.strerror(code), "cat.jpg")


def test_faults_are_recognised_in_messages_and_causes():
    assert "too many open files" in machine_fault(ValueError("open() failed: Too many open files"))
    wrapped = RuntimeError("cannot restore")
    wrapped.__cause__ = MemoryError()
    assert "memory" in machine_fault(wrapped)
    assert machine_fault(ValueError("bad magic number")) is None


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("INTERNAL: Error dispatching: Out of memory allocating 12 bytes.", "no memory is left"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12", "no memory is left"),
        ("Error executing an HTTP request: libcurl code 6 meaning 'Could not resolve'", "reached"),
        ("Error executing an HTTP request: HTTP response code 403 with body", "permission denied"),
        ("Error executing an HTTP request: HTTP response code 503 with body", "did not answer"),
        ("UNAVAILABLE: the bucket's server is gone", "did not answer"),
        ("Error executing an HTTP request: HTTP response code 404 with body", None),
    ],
)
def test_faults_of_remote_storage_and_devices_are_recognised(message, fault):
    actual = machine_fault(RuntimeError(message))
    assert actual is None if fault is None else fault in actual


def test_missing_permissions_for_a_chosen_path_are_a_mistake():
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with (
        pytest.raises(InputError, match=r"^out cannot be written: permission denied$"),
        boundary("out", "cannot be written", chosen=True),
    ):
        raise denied
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(MachineError, match=r"^out: no space"), boundary("out", chosen=True):
        raise full


def test_a_path_missing_in_the_name_is_added():
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b")
    with pytest.raises(InputError, match=r": No such file or directory \(/a/b\)$"), boundary("c"):
        raise missing
    with pytest.raises(InputError, match=r": No such file or directory$"), boundary("/a/b"):
        raise missing


def test_what_does_not_fit_the_memory_is_named():
    with (
        pytest.raises(MachineError, match=r"^--batch-size=9: no memory"),
        fitting_memory("--batch-size=9"),
    ):
        raise MemoryError
    with pytest.raises(KeyError), fitting_memory("--batch-size=9"):
        raise KeyError


def test_in_one_line_escapes_and_shortens():
    assert in_one_line("a\nb\x1b[2Jc caf\udce9 é") == "a\\nb\\x1b[2Jc caf\\udce9 é"
    assert len(in_one_line("x" * 5000 + " " + "y" * 5000)) < 2100


@pytest.mark.parametrize("error", [InputError("one sentence"), RunError("one sentence")])
def test_own_errors_pass_through(error):
    with pytest.raises(type(error), match=r"^one sentence$"), boundary("cat.jpg"):
        raise error


def test_a_signal_passes_through():
    with pytest.raises(KeyboardInterrupt), boundary("cat.jpg"):
        raise KeyboardInterrupt


def test_a_first_line_is_short_and_never_empty():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    long = first_line(ValueError("/a/path" * 60 + ": the reason"))
    assert len(long) < 210
    assert long.endswith("the reason")
