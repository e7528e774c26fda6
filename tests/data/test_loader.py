import itertools
import os
import pathlib
import signal
import sys

import numpy as np
import pytest

from convit_jax.data import (
    EpochOrder,
    EvalTransform,
    LoaderOptions,
    TrainTransform,
    WorkerPool,
    eval_batches,
    train_batches,
)
from convit_jax.data.images.decoding import decode
from convit_jax.errors import RunError
from tests.helpers import assert_same_batches
from tests.processes import wait_until

TRANSFORM = TrainTransform((8, 8), 1, rotate=10.0, translate=0.1)
EVAL_TRANSFORM = EvalTransform((8, 8), 1)
STEPS = 60
PREFETCH_ONE = LoaderOptions(prefetch_batches=1)


def load(digits, *, start=0, stop=STEPS, seed=0, **options):
    order = EpochOrder(len(digits), 32, seed)
    return train_batches(digits, order, TRANSFORM, start_step=start, num_steps=stop, **options)


@pytest.fixture(scope="module")
def batches(digits):
    """All batches of a run of a little more than an epoch."""
    return list(load(digits))


def test_batches_are_uint8_images_and_int32_labels(batches):
    assert len(batches) == STEPS
    for batch in batches:
        assert batch["image"].shape == (32, 8, 8, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (32,)
        assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("start", [1, 43, 59])
def test_batches_do_not_depend_on_the_start_step(digits, batches, start):
    assert_same_batches(list(load(digits, start=start)), batches[start:])


def test_a_distant_step_is_reached_without_reading_earlier_ones(digits):
    reads = []

    class Counting:
        label_shape = ()

        def __len__(self):
            return len(digits)

        def __getitem__(self, index):
            reads.append(index)
            return digits[index]

    order = EpochOrder(len(digits), 32, 0)
    batches = train_batches(
        Counting(), order, TRANSFORM, start_step=10**7, num_steps=10**7 + 1, options=PREFETCH_ONE
    )
    next(batches)
    assert len(reads) == 32


def test_processes_share_the_global_batch(digits, batches):
    for num_processes in (2, 4):
        shards = [
            list(load(digits, stop=3, rows=rows)) for rows in np.split(np.arange(32), num_processes)
        ]
        for step, parts in enumerate(zip(*shards, strict=True)):
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            assert_same_batches([batch], [batches[step]])


def test_batches_do_not_depend_on_threads_and_worker_processes(digits, batches):
    assert_same_batches(list(load(digits, stop=4, options=PREFETCH_ONE)), batches[:4])
    with_workers = LoaderOptions(num_workers=2, prefetch_batches=3)
    assert_same_batches(list(load(digits, stop=4, options=with_workers)), batches[:4])


def test_each_epoch_has_different_augmentation(digits):
    order = EpochOrder(len(digits), 32, 0)
    views_by_example = {}
    for step, batch in enumerate(load(digits, stop=2 * order.steps_per_epoch)):
        for row, image in enumerate(batch["image"]):
            example, epoch, _ = order.locate(step, row)
            views_by_example.setdefault(example, {})[epoch] = image
    pairs = [views for views in views_by_example.values() if len(views) == 2]
    assert len(pairs) > 1300
    num_different = sum(not np.array_equal(views[0], views[1]) for views in pairs)
    assert num_different > 0.99 * len(pairs)


def test_batches_depend_on_the_seed(digits, batches):
    other = next(load(digits, seed=1))
    assert not np.array_equal(other["label"], batches[0]["label"])


@pytest.mark.parametrize(("batch_size", "num_processes"), [(32, 1), (100, 4), (1400, 1), (2000, 2)])
def test_evaluation_visits_every_example_once(digits, batch_size, num_processes):
    shards = [
        list(eval_batches(digits, batch_size, EVAL_TRANSFORM, rows=local_rows))
        for local_rows in np.split(np.arange(batch_size), num_processes)
    ]
    visited = []
    for batch in itertools.chain(*shards):
        assert len(batch["label"]) == batch_size // num_processes
        valid = batch["mask"] == 1
        assert not batch["image"][~valid].any()
        visited += [
            (int(label), image.tobytes())
            for label, image in zip(batch["label"][valid], batch["image"][valid], strict=True)
        ]
    expected = [
        (label, EVAL_TRANSFORM(decode(encoded, 1)).tobytes())
        for encoded, label in (digits[i] for i in range(len(digits)))
    ]
    assert sorted(visited) == sorted(expected)


def test_a_process_may_read_any_rows(digits, batches):
    """The devices of one host may be non-adjacent in the mesh."""
    rows = [0, 1, 6, 7, 30]
    for step, batch in enumerate(load(digits, stop=3, rows=rows)):
        assert_same_batches([batch], [{name: batches[step][name][rows] for name in batch}])


class PartlyBroken:
    """The digits, some of which cannot be read."""

    def __init__(self, digits, broken):
        self.digits, self.broken = digits, set(broken)

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, index):
        if index in self.broken:
            return b"no image", 0
        return self.digits[index]

    label_shape = ()

    def describe(self, index):
        return f"digit {index}"


def test_broken_images_are_logged_once_and_replaced_by_their_neighbours(digits, batches, caplog):
    order = EpochOrder(len(digits), 32, 0)
    first, second = order.locate(0, 5).example, order.locate(1, 0).example
    images = PartlyBroken(digits, {first, second})
    actual = list(load(images, options=LoaderOptions(max_broken=0.01)))
    assert actual[0]["label"][5] == digits[first + 1][1]
    readable = np.arange(32) != 5
    assert np.array_equal(actual[0]["image"][readable], batches[0]["image"][readable])
    # Each is encountered twice in a run of more than an epoch.
    assert [r.message for r in caplog.records if "digit" in r.message] == [
        f"cannot read digit {first}: not an image of a known format (1 of at most 14)",
        f"cannot read digit {second}: not an image of a known format (2 of at most 14)",
    ]


def test_too_many_broken_images_stop_the_run(digits):
    images = PartlyBroken(digits, range(100))
    with pytest.raises(RunError, match=r"cannot read digit \d+: .*number 15 of 1400.*allows 14"):
        list(load(images, options=LoaderOptions(max_broken=0.01)))


def test_a_broken_image_is_excluded_from_an_evaluation(digits):
    options = LoaderOptions(max_broken=0.01)
    batches = list(eval_batches(PartlyBroken(digits, {3}), 700, EVAL_TRANSFORM, options=options))
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert masks.sum() == 1399
    assert masks[3] == 0


def test_views_of_an_image_share_one_decoding(digits, monkeypatch):
    from convit_jax.data import reading

    decoded = []
    monkeypatch.setattr(reading, "decode", lambda *a: decoded.append(a) or decode(*a))
    order = EpochOrder(len(digits), 48, 0, repeats=3)
    batch = next(
        train_batches(digits, order, TRANSFORM, start_step=0, num_steps=1, options=PREFETCH_ONE)
    )
    assert len(decoded) == 16
    rows = [order.locate(0, row) for row in range(48)]
    for example in {row.example for row in rows}:
        views = [batch["image"][i] for i, row in enumerate(rows) if row.example == example]
        assert len({view.tobytes() for view in views}) == 3


class KillingReader:
    """A dataset that kills the process that reads from it."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        os._exit(9)

    label_shape = ()

    def describe(self, index):
        return ""


def test_a_killed_worker_is_reported():
    batches = eval_batches(
        KillingReader(), 50, EVAL_TRANSFORM, options=LoaderOptions(num_workers=1)
    )
    with pytest.raises(RunError, match=r"a process that reads data was killed.*num_workers"):
        next(batches)


def run_until_killed(program, run_python, repository, tmp_path):
    """Run a program that kills itself, with IMAGES as the module `images`."""
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "images.py").write_text(IMAGES)
    variables = {"PYTHONPATH": str(repository)}
    completed = run_python("program.py", tmp_path, cwd=tmp_path, timeout=60, **variables)
    assert completed.returncode == -signal.SIGKILL, completed.stderr


def test_workers_import_neither_jax_nor_tensorflow_and_end_with_their_parent(
    run_python, repository, tmp_path
):
    """A parent is killed while its worker waits; the worker wrote down what it imported."""
    run_until_killed(KILLED_PARENT, run_python, repository, tmp_path)
    (worker,) = tmp_path.glob("worker-*")
    assert worker.read_text() == ""
    pid = int(worker.name.removeprefix("worker-"))
    ended = wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), seconds=10)
    assert ended, f"worker {pid} outlived its parent"


IMAGES = """
import os, pathlib, sys

class Images:
    label_shape = ()

    def __len__(self):
        return 1
    def __getitem__(self, index):
        unwanted = [m for m in ("jax", "tensorflow", "grain", "flax") if m in sys.modules]
        pathlib.Path(sys.argv[1], f"worker-{os.getpid()}").write_text(" ".join(unwanted))
        return b"", 0
    def describe(self, index):
        return ""
"""

# Without `if __name__ == "__main__"`: workers do not import the main module.
KILLED_PARENT = """
import os, signal
import jax
from convit_jax.data.reading import Row, RowReader
from convit_jax.data.workers import WorkerPool
from images import Images

reader = RowReader(Images(), None, (1, 1, 1), None)
with WorkerPool(1) as pool, pool.reading(reader) as read:
    read([Row(0)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


# The process is killed where Python registers a segment that it has just created.
KILLED_CREATING_MEMORY = """
import os, pathlib, signal, sys
from multiprocessing import resource_tracker
from convit_jax.data.reading import Row, RowReader
from convit_jax.data.workers import WorkerPool
from images import Images

register = resource_tracker.register
before = set(os.listdir("/dev/shm"))

def kill_after_creation(name, kind):
    if kind == "shared_memory" and name[1:] in set(os.listdir("/dev/shm")) - before:
        pathlib.Path(sys.argv[1], "segment").write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)
    register(name, kind)

resource_tracker.register = kill_after_creation
reader = RowReader(Images(), None, (1, 1, 1), None)
with WorkerPool(1) as pool, pool.reading(reader) as read:
    read([Row(0)])
"""


def shared_segments():
    return {path.name for path in pathlib.Path("/dev/shm").glob("convit_jax_*")}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists segments, in /dev/shm")
def test_one_pool_reads_training_and_evaluation_and_reuses_its_memory(digits, batches):
    before, seen = shared_segments(), set()
    with WorkerPool(2) as pool:
        training = load(digits, stop=20, pool=pool)
        first = next(training)
        evaluated = list(eval_batches(digits, 700, EVAL_TRANSFORM, pool=pool))
        actual = [first]
        for batch in training:
            actual.append(batch)
            seen |= shared_segments() - before
    assert_same_batches(actual, batches[:20])
    assert_same_batches(evaluated, list(eval_batches(digits, 700, EVAL_TRANSFORM)))
    # A segment for each reader, for each prefetching thread and for larger batches.
    assert len(seen) <= 2 + 2 + 2
    assert shared_segments() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists segments, in /dev/shm")
def test_a_process_killed_while_creating_shared_memory_leaves_none(
    run_python, repository, tmp_path
):
    run_until_killed(KILLED_CREATING_MEMORY, run_python, repository, tmp_path)
    segment = pathlib.Path("/dev/shm" + (tmp_path / "segment").read_text())
    removed = wait_until(lambda: not segment.exists(), seconds=10)
    segment.unlink(missing_ok=True)
    assert removed, f"{segment} was not removed"


# There is no space: for the segment's name, then for its content.
NO_SPACE = """
import errno, os
from multiprocessing import shared_memory
from convit_jax.data import workers

def fail(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

for module, name in (shared_memory._posixshmem, "shm_open"), (shared_memory.os, "ftruncate"):
    original = getattr(module, name)
    setattr(module, name, fail)
    try:
        workers._create_shared_memory(100)
    except OSError as error:
        print(error.strerror)
    setattr(module, name, original)
"""


def test_a_full_shared_memory_raises_and_prints_nothing(run_python):
    """Python's resource tracker prints warnings about unknown names and leaked segments."""
    completed = run_python("-c", NO_SPACE, check=True)
    assert completed.stdout == 2 * "No space left on device\n"
    assert completed.stderr == ""
