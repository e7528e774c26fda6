"""Paths that users type, and paths to write to."""

import errno
import os

import pytest

from convit_jax.errors import InputError, MachineError
from convit_jax.system.paths import (
    expand_home,
    is_directory,
    output_directory,
    output_file,
    path_to_write,
    user_path,
)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "expected a path"),
        ("a\0b", "NUL"),
        ("a" * 256, "a name of 256 bytes"),
        ("é" * 128, "a name of 256 bytes"),
        ("a/" * 2049, "in a path of 4,098"),
        ("http://a/b", "gs://BUCKET/PATH"),
        ("s3://a/b", "gs://BUCKET/PATH"),
        ("gs://", "gs://BUCKET/PATH"),
    ],
)
def test_an_impossible_path_is_reported_with_its_flag(name, problem):
    for flag, named in (("--out", f"--out={name}: "), ("", f"'{name}': ")):
        with pytest.raises(InputError) as error:
            expand_home(name, flag)
        assert str(error.value).startswith(named)
        assert problem in str(error.value)


@pytest.mark.parametrize("name", ["a", "é" * 127, "a" * 255, "a/b://c", "caf\udce9", "gs://a/b c"])
def test_other_paths_are_unchanged(name):
    assert expand_home(name) == name


def test_paths_to_write_to_must_be_utf8():
    with pytest.raises(InputError, match=r"^--out=caf.: expected a name in UTF-8"):
        path_to_write("caf\udce9", "--out")
    assert path_to_write("café").name == "café"


def test_paths_to_write_to_are_tried_and_left_unchanged(tmp_path):
    assert output_directory(f"{tmp_path}/new/one", "--out").is_dir()
    assert list((tmp_path / "new" / "one").iterdir()) == []
    (tmp_path / "old").write_text("old")
    assert output_file(f"{tmp_path}/old", "--out").read_text() == "old"
    assert not output_file(f"{tmp_path}/new/file", "--out").exists()
    with pytest.raises(InputError, match="deep/new cannot be written to: No such file"):
        output_file(f"{tmp_path}/deep/new", "--out")
    assert not (tmp_path / "deep").exists()
    assert is_directory(user_path(tmp_path))
    assert not is_directory(user_path(tmp_path / "old"))


def test_missing_permissions_are_a_mistake_and_a_full_disk_is_a_fault(tmp_path, monkeypatch):
    def refuse(code):
        def mkdir(*arguments, **options):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "mkdir", mkdir)
        monkeypatch.setattr(os, "makedirs", mkdir)

    for code, kind in (
        (errno.EACCES, InputError),
        (errno.EROFS, InputError),
        (errno.ENOTDIR, InputError),
        (errno.ENOSPC, MachineError),
        (errno.EIO, MachineError),
    ):
        refuse(code)
        with pytest.raises(kind, match=f"^--out={tmp_path}/new"):
            output_directory(f"{tmp_path}/new", "--out")
