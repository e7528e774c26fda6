import jax
import pytest

from convit_jax.cache import keep_compiled_programs


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


def test_the_user_s_directory_holds(unset, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/compiled")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/compiled"


def test_programs_of_a_cpu_are_not_kept(unset):
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
