"""scripts/fuzz.py: it detects failures, and some hundred files of each kind are read."""

import contextlib
import pickle
import random

import pytest


@pytest.fixture
def garbling(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import garbling

    return garbling


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        (("jpeg", "png", "image", "tfrecord"), "400"),
        (("safetensors", "pth", "card", "checkpoint", "config", "run"), "100"),
    ],
)
def test_garbled_files_are_read_or_rejected_with_a_sentence(
    kinds, count, repository, run_python, tmp_path
):
    if "pth" in kinds:
        pytest.importorskip("torch", reason="no torch: WITH_TORCH=1 scripts/test.sh")
    arguments = (*kinds, "--count", count, "--seed", "1", "--keep", tmp_path / "findings")
    completed = run_python(repository / "scripts" / "fuzz.py", *arguments, cwd=tmp_path)
    print(completed.stdout)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stdout.count(f"{count} files") == len(kinds)


def test_malicious_pickles_execute_code_in_an_unrestricted_unpickler(garbling, tmp_path):
    """Otherwise the fuzzer could not detect executed code."""
    canary, num_executed = tmp_path / "canary", 0
    garble = garbling.torch_file(str(canary))
    for number in range(500):
        content = garble(b"", random.Random(number))
        if b"touch" in content or b"open" in content:
            with contextlib.suppress(Exception):  # some are garbled, too
                pickle.loads(content)
            num_executed += canary.exists()
            canary.unlink(missing_ok=True)
    assert num_executed > 10


def test_a_file_is_determined_by_its_number(garbling, reference_data):
    content = (reference_data / "four_heads.safetensors").read_bytes()
    first, second = (
        [garbling.safetensors(content, random.Random(i)) for i in range(50)] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 45


def test_garbling_does_not_modify_its_input_or_constants(garbling):
    """Otherwise a file would depend on those garbled before it."""
    tree = {"a": {"b": [1, 2.0, "c", None]}, "d": [{}, []]}
    trees = [[garbling.json_tree(tree, random.Random(i)) for i in range(500)] for _ in range(2)]
    assert trees[0] == trees[1]


def test_findings_are_saved_and_make_the_exit_code_1(repository, run_python, tmp_path):
    """A reader that raises another exception, hangs, dies, or allocates too much memory."""
    script = (repository / "scripts" / "fuzz.py").read_text()
    for name, body, result in (
        ("raises", "raise KeyError('x')", "KeyError"),
        ("hangs", "time.sleep(600)", "more than 1 s"),
        ("dies", "os._exit(9)", "the process died, code 9"),
        ("allocates", "bytearray(4 << 30)", "MemoryError"),
    ):
        modified = script.replace("ROOT = pathlib.Path(__file__).resolve().parent.parent",
                                 f"ROOT = pathlib.Path({str(repository)!r})")  # fmt: skip
        modified = modified.replace("LIMIT = 5.0", "LIMIT = 1.0").replace(
            "PATIENCE = 6", "PATIENCE = 3"
        )
        modified = modified.replace(
            "    content = path.read_bytes()", f"    if _armed: {body}\n"
            "    content = path.read_bytes()",
        )  # fmt: skip
        modified = modified.replace("MEMORY = 3 << 30", "MEMORY = 3 << 30\n_armed = False")
        modified = modified.replace("    answers.write(json.dumps(complaints)",
                                  "    globals()['_armed'] = True\n"
                                  "    answers.write(json.dumps(complaints)")  # fmt: skip
        path = tmp_path / f"{name}.py"
        path.write_text(modified)
        completed = run_python(path, "png", "--count", "1", "--keep", tmp_path / name)
        assert completed.returncode == 1, completed.stdout + completed.stderr
        assert f"1 {result}" in completed.stdout
        assert (tmp_path / name / "png-0.txt").read_text().startswith(result)
