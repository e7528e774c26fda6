import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from convit_jax.data import (
    EpochOrder,
    EvalTransform,
    Reading,
    TrainTransform,
    eval_batches,
    train_batches,
)
from convit_jax.data.images.decoding import decode
from convit_jax.errors import RunError

TRANSFORM = TrainTransform((8, 8), 1, rotate=10.0, translate=0.1)
EVAL_TRANSFORM = EvalTransform((8, 8), 1)
STEPS = 60
ONE_AHEAD = Reading(prefetch_batches=1)


def load(digits, *, start=0, stop=STEPS, seed=0, **options):
    order = EpochOrder(len(digits), 32, seed)
    return train_batches(digits, order, TRANSFORM, start_step=start, num_steps=stop, **options)


@pytest.fixture(scope="module")
def batches(digits):
    """The whole run's batches: an epoch and a bit."""
    return list(load(digits))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_batches_are_uint8_images_and_int32_labels(batches):
    assert len(batches) == STEPS
    for batch in batches:
        assert batch["image"].shape == (32, 8, 8, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (32,)
        assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("start", [1, 43, 59])
def test_batches_from_step_k_on_are_the_same_whether_begun_at_0_or_at_k(digits, batches, start):
    assert_same(list(load(digits, start=start)), batches[start:])


def test_a_step_far_ahead_is_reached_without_those_before(digits):
    reads = []

    class Counting:
        label_shape = ()

        def __len__(self):
            return len(digits)

        def __getitem__(self, index):
            reads.append(index)
            return digits[index]

    order = EpochOrder(len(digits), 32, 0)
    far = train_batches(
        Counting(),
        order,
        TRANSFORM,
        start_step=10**7,
        num_steps=10**7 + 1,
        reading=ONE_AHEAD,
    )
    next(far)
    assert len(reads) == 32


def test_processes_share_the_global_batch(digits, batches):
    for count in (2, 4):
        size = 32 // count
        shards = [
            list(load(digits, stop=3, rows=range(i * size, (i + 1) * size))) for i in range(count)
        ]
        for step, parts in enumerate(zip(*shards, strict=True)):
            together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            assert_same([together], [batches[step]])


def test_threads_and_worker_processes_change_nothing(digits, batches):
    assert_same(list(load(digits, stop=4, reading=ONE_AHEAD)), batches[:4])
    with_workers = Reading(num_workers=2, prefetch_batches=3)
    assert_same(list(load(digits, stop=4, reading=with_workers)), batches[:4])


def test_each_epoch_is_augmented_anew(digits):
    order = EpochOrder(len(digits), 32, 0)
    seen = {}
    for step, batch in enumerate(load(digits, stop=2 * order.steps_per_epoch)):
        for row, image in enumerate(batch["image"]):
            index, epoch, _ = order.locate(step, row)
            seen.setdefault(index, {})[epoch] = image
    twice = [views for views in seen.values() if len(views) == 2]
    assert len(twice) > 1300
    changed = sum(not np.array_equal(views[0], views[1]) for views in twice)
    assert changed > 0.99 * len(twice)


def test_another_seed_is_another_run(digits, batches):
    other = next(load(digits, seed=1))
    assert not np.array_equal(other["label"], batches[0]["label"])


@pytest.mark.parametrize(("batch_size", "count"), [(32, 1), (100, 4), (1400, 1), (2000, 2)])
def test_evaluation_visits_every_example_once(digits, batch_size, count):
    rows = np.split(np.arange(batch_size), count)
    shards = [list(eval_batches(digits, batch_size, EVAL_TRANSFORM, rows=mine)) for mine in rows]
    seen = []
    for batch in itertools.chain(*shards):
        assert len(batch["label"]) == batch_size // count
        real = batch["mask"] == 1
        assert not batch["image"][~real].any()
        seen += [
            (int(label), image.tobytes())
            for label, image in zip(batch["label"][real], batch["image"][real], strict=True)
        ]
    expected = [
        (label, EVAL_TRANSFORM(decode(encoded, 1)).tobytes())
        for encoded, label in (digits[i] for i in range(len(digits)))
    ]
    assert sorted(seen) == sorted(expected)


def test_a_process_may_hold_any_rows(digits, batches):
    """Devices of one host need not be neighbours in the mesh."""
    rows = [0, 1, 6, 7, 30]
    for step, batch in enumerate(load(digits, stop=3, rows=rows)):
        assert_same([batch], [{name: batches[step][name][rows] for name in batch}])


class Spoilt:
    """The digits, of which some cannot be read."""

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


def test_broken_images_are_told_once_and_replaced_by_their_neighbours(digits, batches, caplog):
    order = EpochOrder(len(digits), 32, 0)
    first, second = order.locate(0, 5).index, order.locate(1, 0).index
    spoilt = Spoilt(digits, {first, second})
    options = {"reading": Reading(max_broken=0.01)}
    again = list(train_batches(spoilt, order, TRANSFORM, start_step=0, num_steps=60, **options))
    assert again[0]["label"][5] == digits[first + 1][1]
    whole = np.arange(32) != 5
    assert np.array_equal(again[0]["image"][whole], batches[0]["image"][whole])
    # Each is met twice in a run of more than an epoch.
    assert [r.message for r in caplog.records if "digit" in r.message] == [
        f"cannot read digit {first}: no image of a known kind (1 of at most 14)",
        f"cannot read digit {second}: no image of a known kind (2 of at most 14)",
    ]


def test_too_many_broken_images_stop_the_run(digits):
    spoilt = Spoilt(digits, range(100))
    with pytest.raises(RunError, match=r"cannot read digit \d+: .*number 15 of 1400.*allows 14"):
        list(load(spoilt, reading=Reading(max_broken=0.01)))


def test_a_broken_image_is_left_out_of_an_evaluation(digits):
    options = {"reading": Reading(max_broken=0.01)}
    batches = list(eval_batches(Spoilt(digits, {3}), 700, EVAL_TRANSFORM, **options))
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert masks.sum() == 1399
    assert masks[3] == 0


def test_views_of_an_image_are_near_and_share_one_decoding(digits, monkeypatch):
    from convit_jax.data import reading as module

    decoded = []
    monkeypatch.setattr(module, "decode", lambda *a: decoded.append(a) or decode(*a))
    order = EpochOrder(len(digits), 48, 0, repeats=3)
    batch = next(
        train_batches(digits, order, TRANSFORM, start_step=0, num_steps=1, reading=ONE_AHEAD)
    )
    assert len(decoded) == 16
    located = [order.locate(0, row) for row in range(48)]
    for index in {row.index for row in located}:
        views = [batch["image"][i] for i, row in enumerate(located) if row.index == index]
        assert len({view.tobytes() for view in views}) == 3


class Deadly:
    """Images of which reading one kills the process."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        os._exit(9)

    label_shape = ()

    def describe(self, index):
        return ""


def test_a_worker_that_dies_ends_the_run_with_a_sentence():
    batches = eval_batches(Deadly(), 50, EVAL_TRANSFORM, reading=Reading(num_workers=1))
    with pytest.raises(RunError, match=r"a process that reads data was killed.*num_workers"):
        next(batches)


def run_until_killed(program, repository, tmp_path):
    """Runs a program, with IMAGES beside it, that kills itself."""
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "images.py").write_text(IMAGES)
    done = subprocess.run(
        [sys.executable, "program.py", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_workers_import_neither_jax_nor_tensorflow_and_end_with_their_parent(repository, tmp_path):
    """A parent is killed while its workers wait; the workers tell what they had imported."""
    run_until_killed(PARENT, repository, tmp_path)
    (worker,) = tmp_path.glob("worker-*")
    assert worker.read_text() == ""
    pid = int(worker.name.removeprefix("worker-"))
    for _ in range(100):
        if not pathlib.Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} outlived its parent")


IMAGES = """
import os, pathlib, sys

class Images:
    label_shape = ()

    def __len__(self):
        return 1
    def __getitem__(self, index):
        heavy = [m for m in ("jax", "tensorflow", "grain", "flax") if m in sys.modules]
        pathlib.Path(sys.argv[1], f"worker-{os.getpid()}").write_text(" ".join(heavy))
        return b"", 0
    def describe(self, index):
        return ""
"""

# Without a guard: workers do not import the program that starts them again.
PARENT = """
import os, signal
import jax
from convit_jax.data.reading import Row, RowReader
from convit_jax.data.workers import WorkerPool
from images import Images

with WorkerPool(RowReader(Images(), None, (1, 1, 1), None), 1) as pool:
    pool.read([Row(0)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


# It is killed where Python itself tells of a segment that it has just made.
KILLED = """
import os, pathlib, signal, sys
from multiprocessing import resource_tracker
from convit_jax.data.reading import Row, RowReader
from convit_jax.data.workers import WorkerPool
from images import Images

register = resource_tracker.register
before = set(os.listdir("/dev/shm"))

def killed(name, kind):
    if kind == "shared_memory" and name[1:] in set(os.listdir("/dev/shm")) - before:
        pathlib.Path(sys.argv[1], "segment").write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)
    register(name, kind)

resource_tracker.register = killed
with WorkerPool(RowReader(Images(), None, (1, 1, 1), None), 1) as pool:
    pool.read([Row(0)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="segments are seen in Linux's /dev/shm alone")
def test_who_is_killed_as_it_makes_shared_memory_leaves_none(repository, tmp_path):
    run_until_killed(KILLED, repository, tmp_path)
    segment = pathlib.Path("/dev/shm" + (tmp_path / "segment").read_text())
    for _ in range(100):
        if not segment.exists():
            return
        time.sleep(0.1)
    segment.unlink()
    pytest.fail(f"{segment} is left")


# There is no room: for the segment's name, then for its content.
NO_ROOM = """
import errno, os
from multiprocessing import shared_memory
from convit_jax.data import workers

def none_left(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

for place, name in (shared_memory._posixshmem, "shm_open"), (shared_memory.os, "ftruncate"):
    whole = getattr(place, name)
    setattr(place, name, none_left)
    try:
        workers._new_memory(100)
    except OSError as error:
        print(error.strerror)
    setattr(place, name, whole)
"""


def test_no_room_for_shared_memory_is_told_and_nothing_besides(repository):
    """Python's process that keeps count of it complains of what it was not told, or for long."""
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout == 2 * "No space left on device\n"
    assert done.stderr == ""
