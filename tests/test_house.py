"""The house's rules: who may import whom, and what importing the package costs."""

import ast

import pytest

# A room may import those of a higher number; commands, of number 0, all.
LEVEL = {
    "console": 1,
    "benchmarks": 1,
    "planning": 2,
    "studies": 2,
    "training": 3,
    "analysis": 4,
    "evaluation": 4,
    "weights": 4,
    "config": 5,
    "distributed": 5,
    "models": 6,
    "data": 6,
    "kernels": 7,
    "console.screen": 8,  # what everyone may speak through
    "values": 8,
    "system": 8,
    "errors": 9,
}


def room_of(module):
    """The room of a module by its dotted name below the package."""
    room = ".".join(module.split(".")[:2])
    return room if room in LEVEL else module.split(".")[0]


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
        room = room_of(".".join(path.relative_to(package).with_suffix("").parts))
        for module in imports_of(path):
            if not module.startswith("convit_jax."):
                continue
            imported = room_of(module.removeprefix("convit_jax."))
            if imported == room:
                continue
            seen += 1
            assert LEVEL.get(imported, 0) > LEVEL.get(room, 0), f"{path} imports {module}"
    assert seen > 10


def test_the_top_of_the_package_shows_commands_rooms_and_errors(repository):
    package = repository / "convit_jax"
    commands = {"analyze", "benchmark", "convert", "embed", "evaluate", "plan", "predict",
                "preview", "study", "train"}  # fmt: skip
    files = {path.stem for path in package.glob("*.py")}
    assert files == commands | {"__init__", "errors"}
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms == {name for name in LEVEL if "." not in name} - {"errors"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import convit_jax", ("jax", "flax", "tensorflow", "grain")),
        ("import convit_jax.train", ("jax", "tensorflow", "grain", "absl")),
        ("import convit_jax.data", ("jax", "tensorflow", "grain")),
        ("import convit_jax.data.workers", ("jax", "tensorflow", "grain", "tensorflow_datasets")),
        ("import convit_jax.data.loader", ("flax", "tensorflow", "optax")),
        ("import convit_jax.models", ("tensorflow", "grain", "ml_collections")),
        ("import convit_jax.config", ("tensorflow", "grain", "clu")),
        ("import convit_jax.training", ("tensorflow", "clu")),
        ("import convit_jax.analysis", ("matplotlib", "jinja2", "tensorflow")),
    ],
)
def test_importing_brings_only_what_it_needs(statement, unwanted, run_python):
    program = f"import sys; {statement}; print(*[m for m in {unwanted} if m in sys.modules])"
    assert run_python("-c", program, check=True).stdout.split() == []


def test_lazy_names_are_imported_for_the_type_checker_too(repository):
    """Otherwise mypy takes them for anything at all."""
    from convit_jax import data

    tree = ast.parse((repository / "convit_jax" / "data" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == {name: f"convit_jax.data.{module}" for name, module in data._MODULE_OF.items()}


def test_public_names_are_those_of_the_design():
    import convit_jax

    assert set(convit_jax.__all__) <= set(dir(convit_jax))
    for name in convit_jax.__all__:
        assert callable(getattr(convit_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = convit_jax.create_modle
