import collections

import pytest

from convit_jax.data.order import EpochOrder, views_layout
from convit_jax.data.reading import Row, view_generator
from convit_jax.errors import InputError

# What rows 0 to 7 of step 20 hold, with seed 3, of 100 and of 5000 examples, and in three views.
FEW = [21, 44, 51, 67, 52, 57, 11, 30]
MANY = [2347, 2063, 3758, 314, 4298, 1650, 4776, 2908]
THRICE = [
    (4, 1, 1),
    (48, 1, 1),
    (34, 1, 1),
    (88, 1, 1),
    (4, 1, 2),
    (88, 1, 2),
    (34, 1, 2),
    (48, 1, 2),
]


def epoch_of(order, epoch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    located = [order.locate(step, row) for step in steps for row in range(order.batch_size)]
    assert {row.epoch for row in located} == {epoch}
    return [row.index for row in located]


# Few examples are permuted as a whole, more by Grain's shuffle.
@pytest.mark.parametrize("size", [100, 1204])
def test_an_epoch_holds_no_example_twice_and_leaves_out_less_than_a_batch(size):
    order = EpochOrder(num_examples=size, batch_size=8, seed=0)
    assert order.steps_per_epoch == size // 8
    for epoch in (0, 1, 7):
        indices = epoch_of(order, epoch)
        assert len(set(indices)) == size - 4
        assert set(indices) <= set(range(size))


@pytest.mark.parametrize("size", [100, 1200])
def test_epochs_and_seeds_have_orders_of_their_own(size):
    orders = [
        epoch_of(EpochOrder(size, 10, seed), epoch) for seed in (0, 1, -1) for epoch in (0, 1)
    ]
    for i, first in enumerate(orders):
        assert sorted(first) == list(range(size))
        assert first != list(range(size))
        for second in orders[:i]:
            # Two random orders agree in one place on average.
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_a_runs_order_is_for_good():
    """A run that is resumed by a later version goes on in the order in which it began."""
    few, many, thrice = (
        EpochOrder(100, 8, seed=3), EpochOrder(5000, 8, seed=3), EpochOrder(100, 8, 3, repeats=3),
    )  # fmt: skip
    assert [few.locate(20, row).index for row in range(8)] == FEW
    assert [many.locate(20, row).index for row in range(8)] == MANY
    assert [tuple(thrice.locate(20, row)) for row in range(8)] == THRICE
    assert [type(part) for part in few.locate(20, 0)] == [int, int, int]
    assert few.locate(20, 0)[1:] == (1, 0)
    assert EpochOrder(100, 8, seed=3).repeats == 1
    # The two ways to shuffle, either side of where few examples end.
    for count, expected in ((1023, [688, 556, 39, 305]), (1024, [960, 749, 679, 460])):
        order = EpochOrder(count, 8, seed=5)
        assert [order.locate(1, row).index for row in range(4)] == expected


@pytest.mark.parametrize("size", [100, 1200])
def test_any_two_seeds_have_orders_of_their_own(size):
    seeds = (0, 1, 2, 128, 2**31, 2**32 - 1)
    firsts = {tuple(epoch_of(EpochOrder(size, 10, seed), 0)[:20]) for seed in seeds}
    assert len(firsts) == len(seeds)


def test_seeds_are_whole_numbers_of_64_bits_with_or_without_a_sign():
    firsts = [epoch_of(EpochOrder(100, 10, seed), 0) for seed in (-1, 2**64 - 1, 0, 2**63)]
    assert firsts[0] == firsts[1]
    assert firsts[2] != firsts[3]


def test_a_far_step_is_found_at_once():
    order = EpochOrder(num_examples=1_281_167, batch_size=1024, seed=0)
    assert order.steps_per_epoch == 1251
    index, epoch, _ = order.locate(10**9, 1023)
    assert epoch == 10**9 // 1251
    assert 0 <= index < 1_281_167


def test_a_views_random_numbers_are_a_function_of_seed_epoch_index_and_view():
    def numbers(seed, *row):
        return view_generator(seed, Row(*row)).random(3).tolist()

    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (-1, 0, 0, 0)]
    assert numbers(0, 3, 5, 1) == numbers(0, 3, 5, 1)
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_views_fill_the_epoch_with_the_first_of_the_images(repeats):
    plain, repeated = (EpochOrder(1000, 24, seed=0, repeats=r) for r in (1, repeats))
    assert repeated.steps_per_epoch == plain.steps_per_epoch == 41
    rows = [repeated.locate(step, row) for step in range(41) for row in range(24)]
    assert len(set(rows)) == len(rows) == 984
    counts = collections.Counter(row.index for row in rows)
    assert set(counts.values()) == {repeats}
    assert set(counts) == set(epoch_of(plain, 0)[: 984 // repeats])


def test_a_block_is_as_small_as_it_can_be():
    """So that one process decodes an image once for all its views (`workers.ROWS_AT_ONCE`)."""
    assert [len(views_layout(repeats)) for repeats in (2, 3, 4)] == [8, 12, 32]


def test_neighbouring_rows_are_two_images_and_no_pair_meets_twice():
    for repeats in (2, 3, 4):
        layout = views_layout(repeats)
        assert len(set(layout)) == len(layout)
        pairs = [
            frozenset((one[0], other[0]))
            for one, other in zip(layout[::2], layout[1::2], strict=True)
        ]
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(pairs)) == len(pairs)
        assert collections.Counter(image for image, _ in layout) == dict.fromkeys(
            range(len(layout) // repeats), repeats
        )


@pytest.mark.parametrize("size", [2, 3, 5, 6, 13])
def test_small_datasets_have_every_view_in_range(size):
    order = EpochOrder(size, size, seed=0, repeats=3)
    assert {order.locate(0, row).index for row in range(size)} <= set(range(size))


def test_a_batch_larger_than_the_dataset_is_told_in_a_sentence():
    with pytest.raises(InputError, match="batch_size=64 is more than the 30 training examples"):
        EpochOrder(num_examples=30, batch_size=64, seed=0)
