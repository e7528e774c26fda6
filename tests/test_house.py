"""The house's rules: who may import whom, and what importing the package costs."""

import ast
import subprocess
import sys

import pytest

# A room may import those of a higher number and the common ground; commands, of number 0, all.
LEVEL = {
    "benchmarks": 1,
    "command_line": 1,
    "planning": 2,
    "studies": 2,
    "training": 3,
    "analysis": 4,
    "weights": 4,
    "config_files": 4,
    "config": 5,
    "config_data": 6,
    "models": 7,
    "data": 7,
    "kernels": 8,
    "typed_config": 8,
    "ranges": 9,
    "durations": 10,
}
COMMON = {"cache", "devices", "errors", "huge_pages", "paths", "screen", "whole_file"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "convit_jax":
                yield from (f"convit_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_one_way(repository):
    package = repository / "convit_jax"
    seen = 0
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        for module in imports_of(path):
            if not module.startswith("convit_jax."):
                continue
            imported = module.split(".")[1]
            if imported == room or imported in COMMON:
                continue
            seen += 1
            assert room not in COMMON, f"{path} imports {module}"
            assert LEVEL.get(imported, 0) > LEVEL.get(room, 0), f"{path} imports {module}"
    assert seen > 10


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import convit_jax", ("jax", "flax", "tensorflow", "grain")),
        ("import train", ("jax", "tensorflow", "grain", "absl")),
        ("import convit_jax.data", ("jax", "tensorflow", "grain")),
        ("import convit_jax.data.workers", ("jax", "tensorflow", "grain", "tensorflow_datasets")),
        ("import convit_jax.data.loader", ("flax", "tensorflow", "optax")),
        ("import convit_jax.models", ("tensorflow", "grain", "ml_collections")),
        ("import convit_jax.config", ("tensorflow", "grain", "clu")),
        ("import convit_jax.training", ("tensorflow", "clu")),
        ("import convit_jax.analysis", ("matplotlib", "jinja2", "tensorflow")),
    ],
)
def test_importing_brings_only_what_it_needs(statement, unwanted, repository):
    program = f"import sys; {statement}; print(*[m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_public_names_are_those_of_the_design():
    import convit_jax

    assert set(convit_jax.__all__) <= set(dir(convit_jax))
    for name in convit_jax.__all__:
        assert callable(getattr(convit_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = convit_jax.create_modle
