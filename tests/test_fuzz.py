"""scripts/fuzz.py: that it sees what it is to see, and some hundred files of each kind."""

import contextlib
import pickle
import random
import subprocess
import sys

import pytest


@pytest.fixture
def garbling(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import garbling

    return garbling


def run(repository, keep, *arguments):
    return subprocess.run(
        [sys.executable, repository / "scripts" / "fuzz.py", *arguments, "--keep", keep],
        capture_output=True, text=True, check=False, cwd=keep.parent,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        (("jpeg", "png", "image", "tfrecord"), "400"),
        (("safetensors", "pth", "card", "checkpoint", "config", "run"), "100"),
    ],
)
def test_garbled_files_are_read_or_refused_in_a_sentence(kinds, count, repository, tmp_path):
    if "pth" in kinds:
        pytest.importorskip("torch", reason="no torch: WITH_TORCH=1 scripts/test.sh")
    done = run(repository, tmp_path / "kept", *kinds, "--count", count, "--seed", "1")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"{count} files") == len(kinds)


def test_the_pickles_among_them_run_what_they_say_if_they_are_let(garbling, tmp_path):
    """Otherwise it would be no test that no code is executed."""
    canary, executed = tmp_path / "canary", 0
    garble = garbling.torch_file(str(canary))
    for number in range(500):
        content = garble(b"", random.Random(number))
        if b"touch" in content or b"open" in content:
            with contextlib.suppress(Exception):  # they are garbled, too
                pickle.loads(content)
            executed += canary.exists()
            canary.unlink(missing_ok=True)
    assert executed > 10


def test_a_file_is_a_function_of_its_number(garbling, reference_data):
    content = (reference_data / "four_heads.safetensors").read_bytes()
    ways = [[garbling.safetensors(content, random.Random(i)) for i in range(50)] for _ in range(2)]
    assert ways[0] == ways[1]
    assert len(set(ways[0])) > 45


def test_garbling_leaves_what_it_garbles_with_as_it_was(garbling):
    """Else a file would follow from those garbled before it."""
    tree = {"a": {"b": [1, 2.0, "c", None]}, "d": [{}, []]}
    trees = [[garbling.other_json(tree, random.Random(i)) for i in range(500)] for _ in range(2)]
    assert trees[0] == trees[1]


def test_what_goes_wrong_is_kept_and_is_exit_code_1(repository, tmp_path):
    """A reader that raises something else, one that hangs, one that dies, one that eats memory."""
    script = (repository / "scripts" / "fuzz.py").read_text()
    for name, body, result in (
        ("raises", "raise KeyError('x')", "KeyError"),
        ("hangs", "time.sleep(600)", "more than 1 s"),
        ("dies", "os._exit(9)", "the process died, code 9"),
        ("eats", "bytearray(4 << 30)", "MemoryError"),
    ):
        changed = script.replace("ROOT = pathlib.Path(__file__).resolve().parent.parent",
                                 f"ROOT = pathlib.Path({str(repository)!r})")  # fmt: skip
        changed = changed.replace("LIMIT = 5.0", "LIMIT = 1.0").replace(
            "PATIENCE = 6", "PATIENCE = 3"
        )
        changed = changed.replace(
            "    content = path.read_bytes()", f"    if _armed: {body}\n"
            "    content = path.read_bytes()",
        )  # fmt: skip
        changed = changed.replace("MEMORY = 3 << 30", "MEMORY = 3 << 30\n_armed = False")
        changed = changed.replace("    answers.write(json.dumps(complaints)",
                                  "    globals()['_armed'] = True\n"
                                  "    answers.write(json.dumps(complaints)")  # fmt: skip
        path = tmp_path / f"{name}.py"
        path.write_text(changed)
        done = subprocess.run(
            [sys.executable, path, "png", "--count", "1", "--keep", tmp_path / name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"1 {result}" in done.stdout
        assert (tmp_path / name / "png-0.txt").read_text().startswith(result)
