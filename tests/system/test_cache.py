import pathlib

import jax
import pytest

from convit_jax.system.cache import compiled_programs_shared, keep_compiled_programs


@pytest.fixture
def unset(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "convit_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_of_an_accelerator_are_kept(unset, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(unset)


def test_the_users_directory_is_used(unset, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/compiled")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/compiled"


def test_programs_of_a_cpu_are_not_kept(unset):
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_of_a_cpu_can_be_shared_within_a_context(unset):
    with compiled_programs_shared():
        directory = pathlib.Path(jax.config.jax_compilation_cache_dir)
        assert directory.is_dir()
    assert not directory.exists()
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_compilation_cache_dir", "chosen")
    with compiled_programs_shared():
        assert jax.config.jax_compilation_cache_dir == "chosen"
