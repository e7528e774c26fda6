"""scripts/make_plan_table.py: what it plans, keeps and prints."""

import importlib.util

import pytest


@pytest.fixture
def script(repository):
    path = repository / "scripts" / "make_plan_table.py"
    spec = importlib.util.spec_from_file_location("make_plan_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(model, topology, switch):
    """A plan that fits but for the largest model, which on v5e fits with remat only."""
    heavy = model == "b_plus" and topology == "v5e-8"
    return {
        "model": f"convit_{model}", "topology": topology, "batch_size": 1024, "batch_per_chip": 128,
        "fits": not heavy or "remat" in switch, "problem": "too large", "hbm_bytes": 2**34,
        "parameter_bytes": 2**28, "optimizer_bytes": 2**29, "temporary_bytes": 2**32,
        "other_bytes": 2**28, "total_bytes": 2**33, "images_per_second": 10240.0, "mfu": 0.256,
        "hours": 12.34, "images_per_second_per_host": 5120.0,
    }  # fmt: skip


def test_plans_are_made_once_and_where_one_does_not_fit_with_remat(
    script, monkeypatch, tmp_path, capsys
):
    asked = []
    monkeypatch.setattr(script, "make_plan", lambda *case: asked.append(case) or made(*case))
    script.main(tmp_path / "plans.jsonl")
    printed = capsys.readouterr().out
    everywhere = len(script.MODELS) * len(script.SLICES)
    assert len(asked) == len(set(asked)) == everywhere + 1 + len(script.SWITCHES) - 1
    assert ("b_plus", "v5e-8", script.REMAT) in asked
    expected = "v5e-8 | 128 | 8.00 of 16 | 100.0 | 10,240 | 26 % | 12.3 | 5,120 |"
    assert f"| convit_b | {expected}" in printed
    assert f"| convit_b_plus (remat) | {expected}" in printed
    assert "| `--config.mesh.fsdp=8` | 0.75 | 4.00 | 0.25 | 8.00 | 100.0 |" in printed
    # A second time, all are there.
    script.main(tmp_path / "plans.jsonl")
    assert capsys.readouterr().out == printed
    assert len(asked) == everywhere + len(script.SWITCHES)


def test_the_tables_of_the_docs_are_of_the_plans_beside_them(
    script, repository, monkeypatch, capsys
):
    def missing(*case):
        raise AssertionError(f"docs/plans.jsonl has no plan of {case}")

    monkeypatch.setattr(script, "make_plan", missing)
    script.main(repository / "docs" / "plans.jsonl")
    text = (repository / "docs" / "plans.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in text
