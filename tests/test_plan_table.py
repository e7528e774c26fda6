"""scripts/make_plan_table.py: what it plans, caches and prints."""

import pytest

from tests.helpers import load_module


@pytest.fixture
def script(repository):
    return load_module(repository / "scripts" / "make_plan_table.py")


def fake_plan(model, topology, switch):
    """Return a plan that fits, except that the largest model needs remat on v5e-8."""
    heavy = model == "b_plus" and topology == "v5e-8"
    return {
        "model": f"convit_{model}", "topology": topology, "batch_size": 1024, "batch_per_chip": 128,
        "parts": 1 + (model == "s"),
        "fits": not heavy or "remat" in switch, "problem": "too large", "hbm_bytes": 2**34,
        "parameter_bytes": 2**28, "optimizer_bytes": 2**29, "temporary_bytes": 2**32,
        "other_bytes": 2**28, "total_bytes": 2**33, "images_per_second": 10240.0, "mfu": 0.256,
        "hours": 12.34, "images_per_second_per_host": 5120.0,
    }  # fmt: skip


def test_each_plan_is_computed_once_and_remat_is_tried_where_it_does_not_fit(
    script, monkeypatch, tmp_path, capsys
):
    calls = []
    monkeypatch.setattr(script, "make_plan", lambda *case: calls.append(case) or fake_plan(*case))
    script.main(tmp_path / "plans.jsonl")
    printed = capsys.readouterr().out
    num_runs = len(script.MODELS) * len(script.SLICES)
    assert len(calls) == len(set(calls)) == num_runs + 1 + len(script.SWITCHES) - 1
    assert ("b_plus", "v5e-8", script.REMAT) in calls
    expected = "v5e-8 | 128 | 8.00 of 16 | 100.0 | 10,240 | 26 % | 12.3 | 5,120 |"
    assert f"| convit_b | {expected}" in printed
    assert f"| convit_s | {expected}".replace("128", "2 x 64", 1) in printed
    assert f"| convit_b_plus (remat) | {expected}" in printed
    assert "| `--config.mesh.fsdp=8` | 0.75 | 4.00 | 0.25 | 8.00 | 100.0 |" in printed
    # The second time, all plans are cached.
    script.main(tmp_path / "plans.jsonl")
    assert capsys.readouterr().out == printed
    assert len(calls) == num_runs + len(script.SWITCHES)


def test_the_tables_of_the_docs_match_docs_plans_jsonl(script, repository, monkeypatch, capsys):
    def fail(*case):
        raise AssertionError(f"docs/plans.jsonl has no plan of {case}")

    monkeypatch.setattr(script, "make_plan", fail)
    script.main(repository / "docs" / "plans.jsonl")
    text = (repository / "docs" / "plans.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in text
