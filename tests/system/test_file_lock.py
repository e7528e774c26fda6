import errno
import fcntl
import os

import pytest

from convit_jax.system.file_lock import LockedError, NoLocksError, lock_file


def test_lock_is_exclusive_and_names_its_holder(tmp_path):
    with (
        lock_file(tmp_path / "lock", ", begun now"),
        pytest.raises(LockedError, match=rf"^process {os.getpid()} on .+, begun now$"),
        lock_file(tmp_path / "lock"),
    ):
        pass
    with lock_file(tmp_path / "lock"):
        pass


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(NoLocksError, match="No locks available"), lock_file(tmp_path / "lock"):
        pass
