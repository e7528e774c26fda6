"""Files that are written atomically."""

import pytest

from convit_jax.errors import InputError
from convit_jax.system.whole_file import write_whole


def test_a_file_is_replaced_at_once_and_directories_are_created(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        write_whole(path, lambda draft, text=text: draft.write_text(text))
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(draft):
        draft.write_text("half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_to_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/inside.txt cannot be written: "):
        write_whole(tmp_path / "file" / "inside.txt", lambda draft: draft.write_text(""))
