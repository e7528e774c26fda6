"""scripts/try_pairs.py: the choice of runs, the search for causes, and the first runs."""

import itertools

import pytest

from tests.helpers import load_module


@pytest.fixture
def script(repository):
    return load_module(repository / "scripts" / "try_pairs.py")


VALUES = {name: (0, 1, 2) if name in "ab" else (0, 1) for name in "abcdefgh"}


def all_pairs():
    return {
        frozenset(pair)
        for first, second in itertools.combinations(VALUES, 2)
        for pair in itertools.product(
            ((first, i) for i in range(len(VALUES[first]))),
            ((second, i) for i in range(len(VALUES[second]))),
        )
    }


def pairs_in(rows):
    return {frozenset(pair) for row in rows for pair in itertools.combinations(row.items(), 2)}


def test_few_runs_cover_every_pair(script):
    pairs, rows = script.Pairs(VALUES, lambda row: True, seed=0), []
    for row in pairs.rows():
        rows.append(row)
        pairs.cover(row)
    assert pairs_in(rows) == all_pairs()
    assert len(rows) <= 14  # the pairs of a and b need nine


def test_impossible_pairs_hide_no_others(script):
    """c=1 is invalid with d=1, and e=1 is valid only with f=1."""

    def is_valid(row):
        return not (row["c"] and row["d"]) and row["e"] <= row["f"]

    pairs, rows = script.Pairs(VALUES, is_valid, seed=0), []
    impossible = pairs.impossible()
    assert set(impossible) == {frozenset((("c", 1), ("d", 1))), frozenset((("e", 1), ("f", 0)))}
    pairs.uncovered -= set(impossible)
    for row in pairs.rows():
        assert is_valid(row)
        rows.append(row)
        pairs.cover(row)
    assert pairs_in(rows) == all_pairs() - set(impossible)


def test_causes_of_failures_are_found_and_the_other_pairs_are_covered(script):
    def run(row):
        if row["a"] == 2 and row["g"] == 1:
            return script.Outcome("failed", "KeyError: 2", 0.0)
        if row["h"] == 1:
            return script.Outcome("refused", "config.h=1: expected 0", 0.0)
        return script.Outcome("trained", "", 0.0)

    pairs, trained, causes = script.Pairs(VALUES, lambda row: True, seed=0), [], []
    for row in pairs.rows():
        outcome = run(row)
        if outcome.result == "trained":
            trained.append(row)
            pairs.cover(row)
        else:
            causes.append(script.find_cause(row, outcome, run))
            pairs.avoid(causes[-1])
    assert set(causes) == {frozenset((("a", 2), ("g", 1))), frozenset((("h", 1),))}
    assert len(causes) == 2
    excluded = {pair for pair in all_pairs() if any(cause <= pair for cause in causes)}
    assert pairs_in(trained) == all_pairs() - excluded


def test_keys_exist_and_their_values_differ(script, tmp_path):
    defaults = {key: values[0] for key, values in script.VALUES.items()}
    default_config = script.resolve(script.nested_config(defaults, tmp_path))
    num_changed = 0
    for key, values in script.VALUES.items():
        for value in values[1:]:
            try:
                config = script.resolve(script.nested_config(defaults | {key: value}, tmp_path))
            except script.InputError:
                continue  # the key would be unused at the other keys' defaults
            assert config != default_config, key
            num_changed += 1
    assert num_changed > 30


def test_the_first_runs_train_on_four_devices(run_python):
    """Two runs cover nearly half of all pairs; covering all takes half an hour."""
    result = run_python("scripts/try_pairs.py", "--devices", "4", "--first", "2")
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 findings" in result.stdout
