import itertools

import numpy as np
import pytest

from convit_jax.data import (
    EpochOrder,
    EvalTransform,
    Reading,
    Shard,
    TrainTransform,
    eval_batches,
    train_batches,
)
from convit_jax.errors import InputError

TRANSFORM = TrainTransform((8, 8), 1, rotate=10.0, translate=0.1)
EVAL_TRANSFORM = EvalTransform((8, 8), 1)
STEPS = 60
ONE_THREAD = Reading(num_threads=1, prefetch_batches=1)


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
        def __len__(self):
            return len(digits)

        def __getitem__(self, index):
            reads.append(index)
            return digits[index]

    order = EpochOrder(len(digits), 32, 0)
    far = train_batches(
        Counting(), order, TRANSFORM, start_step=10**7, num_steps=10**7 + 1, reading=ONE_THREAD
    )
    next(far)
    assert len(reads) == 32


def test_processes_share_the_global_batch(digits, batches):
    for count in (2, 4):
        shards = [list(load(digits, stop=3, shard=Shard(i, count))) for i in range(count)]
        for step, parts in enumerate(zip(*shards, strict=True)):
            together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            assert_same([together], [batches[step]])


def test_threads_and_worker_processes_change_nothing(digits, batches):
    assert_same(list(load(digits, stop=4, reading=ONE_THREAD)), batches[:4])
    assert_same(list(load(digits, stop=4, reading=Reading(num_workers=2))), batches[:4])


def test_each_epoch_is_augmented_anew(digits):
    order = EpochOrder(len(digits), 32, 0)
    seen = {}
    for step, batch in enumerate(load(digits, stop=2 * order.steps_per_epoch)):
        for row, image in enumerate(batch["image"]):
            epoch, index = order.locate(step, row)
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
    shards = [
        list(eval_batches(digits, batch_size, EVAL_TRANSFORM, shard=Shard(i, count)))
        for i in range(count)
    ]
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
        (label, EVAL_TRANSFORM(encoded).tobytes())
        for encoded, label in (digits[i] for i in range(len(digits)))
    ]
    assert sorted(seen) == sorted(expected)


def test_a_batch_that_processes_cannot_share_is_told_in_a_sentence(digits):
    with pytest.raises(InputError, match=r"does not divide among 3 processes.*30 and 33"):
        load(digits, shard=Shard(0, 3))
