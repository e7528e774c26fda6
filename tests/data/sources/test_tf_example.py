"""Reading parts of serialised tf.train.Examples."""

import random

import pytest

from convit_jax.data.sources.tf_example import message_class, parse, parse_parts

WANTED = ("label", "file_name", "absent")


def example(rng, image_size):
    """Return a record whose features are in a random order, with all kinds of values."""
    example = message_class("Example")()
    features = example.features.feature
    for key in rng.sample(["image", "label", "file_name", "box"], k=rng.randint(1, 4)):
        if key == "image":
            features[key].bytes_list.value.append(rng.randbytes(image_size))
        elif key == "label":
            features[key].int64_list.value.extend([rng.randint(-5, 10**6)] * rng.randint(0, 2))
        elif key == "file_name":
            features[key].bytes_list.value.append(b"n0" * rng.choice([3, 300]))
        else:
            features[key].float_list.value.append(0.5)
    return example.SerializeToString()


@pytest.mark.parametrize("image_size", [10, 3_000, 4_000, 5_000, 100_000])
def test_parts_are_parsed_as_the_whole_is(image_size):
    rng = random.Random(image_size)
    for _ in range(100):
        record = example(rng, image_size)
        num_read = 0

        def read(start, stop, record=record):
            nonlocal num_read
            num_read += stop - start
            return record[start:stop]

        assert parse_parts(len(record), read, *WANTED) == parse(record, *WANTED)
        assert num_read <= 8 * 512  # whatever the size of the image


def error_of(record):
    """Return the type of the error that reading the record raises, or None."""
    try:
        parse_parts(len(record), lambda start, stop: bytes(record[start:stop]), "label")
    except Exception as error:
        return type(error).__name__
    return None


def test_a_garbled_record_raises_or_is_read_in_part():
    """`errors.boundary` turns whatever it raises into a sentence."""
    rng, record = random.Random(0), b""
    while len(record) < 10**5:
        record = example(rng, 10**5)
    errors = set()
    for _ in range(500):
        garbled = bytearray(record)
        for _ in range(3):
            garbled[rng.randrange(700)] = rng.randrange(256)
        errors.add(error_of(garbled))
    assert errors <= {None, "ValueError", "DecodeError", "UnicodeDecodeError"}
    assert "ValueError" in errors
