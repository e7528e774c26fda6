"""scripts/try_pairs.py: how it chooses runs, what it does with refusals, and its first runs."""

import importlib.util
import itertools
import subprocess
import sys

import pytest


@pytest.fixture
def script(repository):
    path = repository / "scripts" / "try_pairs.py"
    spec = importlib.util.spec_from_file_location("try_pairs", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["try_pairs"] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


VALUES = {name: (0, 1, 2) if name in "ab" else (0, 1) for name in "abcdefgh"}


def all_pairs():
    return {
        frozenset(pair)
        for one, other in itertools.combinations(VALUES, 2)
        for pair in itertools.product(
            ((one, i) for i in range(len(VALUES[one]))),
            ((other, i) for i in range(len(VALUES[other]))),
        )
    }


def covered(rows):
    return {frozenset(pair) for row in rows for pair in itertools.combinations(row.items(), 2)}


def test_few_runs_hold_every_pair(script):
    pairs, rows = script.Pairs(VALUES, lambda row: True, seed=0), []
    for row in pairs.rows():
        rows.append(row)
        pairs.cover(row)
    assert covered(rows) == all_pairs()
    assert len(rows) <= 14  # nine hold the pairs of a and b alone


def test_a_pair_that_cannot_be_hides_no_other(script):
    """No row may have c=1 with d=1, and e=1 is valid with f=1 alone."""

    def is_valid(row):
        return not (row["c"] and row["d"]) and row["e"] <= row["f"]

    pairs, rows = script.Pairs(VALUES, is_valid, seed=0), []
    impossible = pairs.impossible()
    assert set(impossible) == {
        frozenset((("c", 1), ("d", 1))),
        frozenset((("e", 1), ("f", 0))),
    }
    pairs.uncovered -= set(impossible)
    for row in pairs.rows():
        assert is_valid(row)
        rows.append(row)
        pairs.cover(row)
    assert covered(rows) == all_pairs() - set(impossible)


def test_what_fails_is_narrowed_down_and_the_rest_is_covered_by_other_runs(script):
    def run(row):
        if row["a"] == 2 and row["g"] == 1:
            return script.Outcome("failed", "KeyError: 2", 0.0)
        if row["h"] == 1:
            return script.Outcome("refused", "config.h=1: expected 0", 0.0)
        return script.Outcome("trained", "", 0.0)

    pairs, worked, blamed = script.Pairs(VALUES, lambda row: True, seed=0), [], []
    for row in pairs.rows():
        outcome = run(row)
        if outcome.result == "trained":
            worked.append(row)
            pairs.cover(row)
        else:
            blamed.append(script.to_blame(row, outcome, run))
            pairs.avoid(blamed[-1])
    assert set(blamed) == {frozenset((("a", 2), ("g", 1))), frozenset((("h", 1),))}
    assert len(blamed) == 2
    done_with = {pair for pair in all_pairs() if any(b <= pair for b in blamed)}
    assert covered(worked) == all_pairs() - done_with


def test_every_key_that_is_tried_exists_and_its_values_differ(script, tmp_path):
    row = {name: values[0] for name, values in script.VALUES.items()}
    first = script.resolve(script.config_values(row, tmp_path))
    changed = 0
    for name, values in script.VALUES.items():
        for value in values[1:]:
            try:
                config = script.resolve(script.config_values(row | {name: value}, tmp_path))
            except script.InputError:
                continue  # it would not be read, with the others as they are
            assert config != first, name
            changed += 1
    assert changed > 30


def test_the_first_runs_train_on_four_devices(repository):
    """Two runs hold nearly half of all pairs; the others are a long command."""
    done = subprocess.run(
        [sys.executable, "scripts/try_pairs.py", "--devices", "4", "--first", "2"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout
