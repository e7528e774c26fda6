"""scripts/mutate.py: the changes it makes, and that failing tests kill mutants."""

import json

import pytest

from tests.helpers import load_module

SOURCE = '''"""What it is for."""

import math

LIMIT: int = 3


def half(x: float, *, up: bool = False) -> float:
    """Half of it."""
    if x < 0:
        raise ValueError(f"{x}: expected 0 or more")
    y = x / 2
    y += 0.5
    return math.ceil(y) if up else max(y, LIMIT)
'''


@pytest.fixture
def mutate(repository):
    return load_module(repository / "scripts" / "mutate.py")


def mutants_of(mutate, directory, source):
    path = directory / "code.py"
    path.write_text(source)
    return mutate.mutants(path, root=directory)


def test_every_kind_of_change_is_made_once(mutate, tmp_path):
    changes = {f"{m.scope}: {m.change}" for m in mutants_of(mutate, tmp_path, SOURCE)}
    assert changes == {
        ": 3 → 4",
        ": 3 → 2",
        "half: False → True",
        "half: if x < 0: → if not x < 0:",
        "half: x < 0 → x <= 0",
        "half: x < 0 → x >= 0",
        "half: 0 → 1",
        "half: 0 → -1",
        "half: raise ValueError(f'{x}: expected 0 or more') → nothing",
        "half: x / 2 → x * 2",
        "half: 2 → 3",
        "half: 2 → 1",
        "half: y += 0.5 → y -= 0.5",
        "half: y += 0.5 → nothing",
        "half: 0.5 → 0.55",
        "half: 0.5 → 0.45",
        "half: return math.ceil(y) if up else max(y, LIMIT) → return",
        "half: math.ceil(y) if up else max(y, LIMIT) → max(y, LIMIT) if up else math.ceil(y)",
        "half: math.ceil(y) → math.floor(y)",
        "half: math.ceil(y) → y",
        "half: max(y, LIMIT) → min(y, LIMIT)",
        "half: max(y, LIMIT) → y",
    }


def test_mutants_differ_from_the_file_and_from_each_other(mutate, repository):
    for path in mutate.FILES:
        mutants = mutate.mutants(repository / path)
        assert len({mutant.id for mutant in mutants}) == len(mutants) > 50
        for mutant in mutants[::20]:
            compile(mutant.source(), path, "exec")
        assert all((repository / test).exists() for test in mutate.FILES[path])


def test_ids_are_unaffected_by_changes_of_other_lines(mutate, tmp_path):
    before = {m.change: m.id for m in mutants_of(mutate, tmp_path, SOURCE)}
    moved = SOURCE.replace("import math\n", "import math\n\nOTHER = 7\n").replace(
        "y += 0.5", "y += 1"
    )
    after = {m.change: m.id for m in mutants_of(mutate, tmp_path, moved)}
    assert before["x / 2 → x * 2"] == after["x / 2 → x * 2"]
    assert len(after.keys() & before.keys()) > 15


def test_a_mutant_is_killed_if_a_test_fails_and_survives_otherwise(
    repository, mutate, run_python, tmp_path
):
    """The division in the steps per epoch is killed; a shortcut for one view survives."""
    path = repository / "convit_jax" / "data" / "order.py"
    ids = {f"{m.scope}: {m.change}": m.id for m in mutate.mutants(path)}
    quotient = "self.num_examples {} self.batch_size"
    killed = ids[f"EpochOrder.steps_per_epoch: {quotient.format('//')} → {quotient.format('/')}"]
    survivor = ids["EpochOrder.locate: self.repeats > 1 → self.repeats >= 1"]
    report = tmp_path / "report.jsonl"
    result = run_python("scripts/mutate.py", "--ids", killed, survivor, "--report", report)
    assert result.returncode == 0, result.stdout + result.stderr
    results = {r["id"]: r for r in map(json.loads, report.read_text().splitlines())}
    assert results[killed]["result"] == "killed"
    assert results[killed]["by"].startswith("tests/data/test_order.py::")
    assert results[survivor]["result"] == "survived"


def test_every_listed_survivor_has_a_reason(mutate):
    if not mutate.SURVIVORS.exists():
        pytest.skip(f"no campaign has been completed: there is no {mutate.SURVIVORS.name}")
    reasons = mutate._reasons(ids=())
    assert len(reasons) > 20
    assert all(len(reason) > 10 for reason in reasons.values())
