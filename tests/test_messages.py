"""What a failed comparison says: of disks, it has to say where, and soon."""

import pytest

MIB = 1 << 20
SHORT = b"abd"


def test_long_byte_strings_that_differ_are_compared_at_once_and_by_place():
    found, expected = bytes(MIB) + b"\x01" + bytes(MIB), bytes(2 * MIB)
    with pytest.raises(AssertionError) as failure:
        assert found == expected
    message = str(failure.value)
    assert f"the first difference is at byte {MIB}" in message
    assert "left:  01 00" in message
    assert len(message) < 1000


def test_a_byte_string_that_ends_early_differs_where_it_ends():
    with pytest.raises(AssertionError, match="the first difference is at byte 100"):
        assert memoryview(bytes(100)) == bytes(200)


def test_short_byte_strings_are_shown_whole():
    with pytest.raises(AssertionError, match="b'abd' == b'abc'"):
        assert SHORT == b"abc"
