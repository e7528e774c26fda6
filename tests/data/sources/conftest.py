"""Small sources."""

import pytest

from convit_jax.data import open_source


@pytest.fixture
def open_folder(tmp_path):
    """A function of {class: number of files}: a folder whose files contain CLASS and number."""

    def make(**counts):
        for class_name, count in counts.items():
            (tmp_path / class_name).mkdir()
            for i in range(count):
                (tmp_path / class_name / f"{i:02d}.jpg").write_bytes(f"{class_name}{i}".encode())
        return open_source(f"folder:{tmp_path}")

    return make
