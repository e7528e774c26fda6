import pickle

import pytest

from convit_jax.data.sources.packed_names import PackedNames

NAMES = ["cat/1.jpg", "", "dog/café.png", "caf\udce9", "x" * 300]


def test_names_are_those_that_were_packed():
    packed = PackedNames.pack(iter([("", NAMES[:2]), ("empty/", []), ("a/", NAMES[2:])]))
    assert [packed[i] for i in range(len(packed))] == [*NAMES[:2], *(f"a/{n}" for n in NAMES[2:])]
    with pytest.raises(IndexError):
        packed[len(NAMES)]


def test_a_million_names_take_the_memory_of_their_letters():
    packed = PackedNames.pack([("n", [f"{i:08d}.JPEG" for i in range(100_000)])])
    assert packed[99_999] == "n00099999.JPEG"
    assert len(pickle.dumps(packed, protocol=5)) < 100_000 * (15 + 8) + 1000
