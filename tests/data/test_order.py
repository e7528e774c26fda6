import numpy as np
import pytest

from convit_jax.data.order import EpochOrder, example_generator
from convit_jax.errors import InputError


def epoch_of(order, epoch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    located = [order.locate(step, row) for step in steps for row in range(order.batch_size)]
    assert {e for e, _ in located} == {epoch}
    return [index for _, index in located]


def test_an_epoch_holds_no_example_twice_and_leaves_out_less_than_a_batch():
    order = EpochOrder(num_examples=100, batch_size=8, seed=0)
    assert order.steps_per_epoch == 12
    for epoch in (0, 1, 7):
        indices = epoch_of(order, epoch)
        assert len(set(indices)) == 96
        assert set(indices) <= set(range(100))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_of(EpochOrder(100, 10, seed), epoch) for seed in (0, 1, -1) for epoch in (0, 1)]
    for i, first in enumerate(orders):
        assert sorted(first) == list(range(100))
        assert first != list(range(100))
        for second in orders[:i]:
            # Two random orders of 100 agree in one place on average.
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_a_far_step_is_found_at_once():
    order = EpochOrder(num_examples=1_281_167, batch_size=1024, seed=0)
    assert order.steps_per_epoch == 1251
    epoch, index = order.locate(10**9, 1023)
    assert epoch == 10**9 // 1251
    assert 0 <= index < 1_281_167


def test_an_examples_random_numbers_are_a_function_of_seed_epoch_and_index():
    def numbers(*key):
        return example_generator(*key).random(3).tolist()

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0)]
    assert numbers(0, 3, 5) == numbers(0, 3, 5)
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)
    assert np.all(np.asarray([numbers(*key) for key in keys]) < 1)


def test_a_batch_larger_than_the_dataset_is_told_in_a_sentence():
    with pytest.raises(InputError, match="batch_size=64 is more than the 30 training examples"):
        EpochOrder(num_examples=30, batch_size=64, seed=0)
