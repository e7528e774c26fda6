import collections
import math

import numpy as np
import pytest
from grain.experimental import index_shuffle

from convit_jax.data.order import EpochOrder, views_layout
from convit_jax.data.reading import Row, view_generator
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError

# The content of rows 0 to 7 of step 20, with seed 3: of 100 examples, of 5000, and of 100 in three
# views.
FEW = [21, 44, 51, 67, 52, 57, 11, 30]
MANY = [2347, 2063, 3758, 314, 4298, 1650, 4776, 2908]
THREE_VIEWS = [
    (48, 1, 0), (87, 1, 1), (48, 1, 1), (88, 1, 0), (76, 1, 0), (88, 1, 1), (48, 1, 2), (9, 1, 0),
]  # fmt: skip


def examples_of_epoch(order, epoch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    rows = [order.locate(step, row) for step in steps for row in range(order.batch_size)]
    assert {row.epoch for row in rows} == {epoch}
    return [row.example for row in rows]


# 100 examples are shuffled by NumPy, 1204 by Grain.
@pytest.mark.parametrize("size", [100, 1204])
def test_an_epoch_has_no_example_twice_and_omits_less_than_a_batch(size):
    order = EpochOrder(num_examples=size, batch_size=8, seed=0)
    assert order.steps_per_epoch == size // 8
    for epoch in (0, 1, 7):
        examples = examples_of_epoch(order, epoch)
        assert len(set(examples)) == size - 4
        assert set(examples) <= set(range(size))


@pytest.mark.parametrize("size", [100, 1200])
def test_epochs_and_seeds_have_different_orders(size):
    orders = [
        examples_of_epoch(EpochOrder(size, 10, seed), epoch)
        for seed in (0, 1, -1)
        for epoch in (0, 1)
    ]
    for i, first in enumerate(orders):
        assert sorted(first) == list(range(size))
        assert first != list(range(size))
        for second in orders[:i]:
            # Two random orders agree in one position on average.
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_the_order_never_changes():
    """A run that is resumed with a later version should continue in the same order."""
    few, many, three_views = (
        EpochOrder(100, 8, seed=3), EpochOrder(5000, 8, seed=3), EpochOrder(100, 8, 3, repeats=3),
    )  # fmt: skip
    assert [few.locate(20, row).example for row in range(8)] == FEW
    assert [many.locate(20, row).example for row in range(8)] == MANY
    assert [tuple(three_views.locate(20, row)) for row in range(8)] == THREE_VIEWS
    assert [type(part) for part in few.locate(20, 0)] == [int, int, int]
    assert few.locate(20, 0)[1:] == (1, 0)
    assert EpochOrder(100, 8, seed=3).repeats == 1
    # The two shuffling methods, on either side of the threshold.
    for num_examples, expected in ((1023, [688, 556, 39, 305]), (1024, [960, 749, 679, 460])):
        order = EpochOrder(num_examples, 8, seed=5)
        assert [order.locate(1, row).example for row in range(4)] == expected


@pytest.mark.parametrize("size", [1024, 1500, 2**16 - 1, 2**16])
def test_cached_permutations_are_those_of_index_shuffle(size):
    order = EpochOrder(size, 8, seed=7)
    for step, row in ((0, 0), (3, 1), (order.steps_per_epoch - 1, 7), (order.steps_per_epoch, 2)):
        example, epoch, _ = order.locate(step, row)
        position = step % order.steps_per_epoch * 8 + row
        seed = int(np.random.SeedSequence((7, epoch)).generate_state(1)[0])
        assert example == index_shuffle(position, max_index=size - 1, seed=seed, rounds=4)
        assert type(example) is int


@pytest.mark.parametrize("size", [100, 1200])
def test_any_two_seeds_have_different_orders(size):
    seeds = (0, 1, 2, 128, 2**31, 2**32 - 1)
    firsts = {tuple(examples_of_epoch(EpochOrder(size, 10, seed), 0)[:20]) for seed in seeds}
    assert len(firsts) == len(seeds)


def test_seeds_are_integers_modulo_2_to_the_64():
    firsts = [examples_of_epoch(EpochOrder(100, 10, seed), 0) for seed in (-1, 2**64 - 1, 0, 2**63)]
    assert firsts[0] == firsts[1]
    assert firsts[2] != firsts[3]


def test_a_distant_step_is_located_at_once():
    order = EpochOrder(num_examples=imagenet.NUM_TRAIN_IMAGES, batch_size=1024, seed=0)
    assert order.steps_per_epoch == 1251
    example, epoch, _ = order.locate(10**9, 1023)
    assert epoch == 10**9 // 1251
    assert 0 <= example < imagenet.NUM_TRAIN_IMAGES


def test_a_views_random_numbers_are_a_function_of_seed_epoch_example_and_view():
    def numbers(seed, *row):
        return view_generator(seed, Row(*row)).random(3).tolist()

    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (-1, 0, 0, 0)]
    assert numbers(0, 3, 5, 1) == numbers(0, 3, 5, 1)
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_views_fill_the_epoch_with_the_first_of_the_images(repeats):
    plain, repeated = (EpochOrder(1000, 24, seed=0, repeats=r) for r in (1, repeats))
    assert repeated.steps_per_epoch == plain.steps_per_epoch == 41
    rows = [repeated.locate(step, row) for step in range(40) for row in range(24)]
    assert len(set(rows)) == len(rows) == 960
    counts = collections.Counter(row.example for row in rows)
    assert set(counts.values()) == {repeats}
    assert set(counts) == set(examples_of_epoch(plain, 0)[: 960 // repeats])


def num_decodings(num_rows, num_hosts, step):
    """Images that hosts decode for a batch in three views, each of its contiguous rows."""
    order = EpochOrder(imagenet.NUM_TRAIN_IMAGES, num_rows, 0, repeats=3)
    rows = [order.locate(step, row).example for row in range(num_rows)]
    share = num_rows // num_hosts
    return sum(len(set(rows[i * share : (i + 1) * share])) for i in range(num_hosts))


@pytest.mark.parametrize("rows_per_host", [16, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("num_hosts", [1, 3, 8])
def test_hosts_decode_hardly_more_than_a_third_of_their_rows(rows_per_host, num_hosts):
    least = num_hosts * math.ceil(rows_per_host / 3)
    for step in range(3):
        assert num_decodings(rows_per_host * num_hosts, num_hosts, step) <= 1.02 * least + 1


def test_three_hosts_of_32_rows_need_34_images():
    """32 rows of eleven images have one view less than all: two hosts cannot complete a third."""
    assert max(num_decodings(96, 3, step) for step in range(3)) == 34


def test_neighbouring_rows_are_two_images_and_no_pair_occurs_twice():
    for repeats in (1, 2, 3, 4, 5, 7):
        layout = views_layout(repeats)
        assert len(set(layout)) == len(layout)
        pairs = [
            frozenset((first[0], second[0]))
            for first, second in zip(layout[::2], layout[1::2], strict=True)
        ]
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(pairs)) == len(pairs)
        assert collections.Counter(image for image, _ in layout) == dict.fromkeys(
            range(len(layout) // repeats), repeats
        )


@pytest.mark.parametrize("size", [2, 3, 5, 6, 13])
def test_small_datasets_have_every_view_in_range(size):
    order = EpochOrder(size, size, seed=0, repeats=3)
    assert {order.locate(0, row).example for row in range(size)} <= set(range(size))


def test_a_batch_larger_than_the_dataset_is_an_input_error():
    with pytest.raises(InputError, match="batch_size=64 is more than the 30 training examples"):
        EpochOrder(num_examples=30, batch_size=64, seed=0)


@pytest.mark.parametrize("repeats", [1, 3])
def test_on_request_a_batch_larger_than_the_dataset_has_whole_epochs(repeats):
    order = EpochOrder(10, 64, seed=0, repeats=repeats, fill_batches=True)
    assert order.steps_per_epoch == 1
    rows = [order.locate(step, row) for step in range(15) for row in range(64)]
    assert len(set(rows)) == len(rows) == 960  # each view of each example once
    views_of_epoch = 10 * repeats
    assert {row.epoch for row in rows} == set(range(960 // views_of_epoch))
    assert collections.Counter(row.epoch for row in rows)[3] == views_of_epoch
    if repeats == 1:
        orders = [tuple(row.example for row in rows[k : k + 10]) for k in range(0, 960, 10)]
        assert all(sorted(examples) == list(range(10)) for examples in orders)
        assert len(set(orders)) == len(orders)


def test_filling_batches_changes_nothing_where_the_dataset_has_a_batch():
    plain, filled = (EpochOrder(100, 8, seed=3, fill_batches=fill) for fill in (False, True))
    positions = [(step, row) for step in range(40) for row in range(8)]
    assert [plain.locate(*at) for at in positions] == [filled.locate(*at) for at in positions]
