"""Sizes and durations on the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impl.errors import UsageError
from impl.sizes import SIZE_MAX, format_about, format_size, parse_duration, parse_size

SIZES = [
    ("0", 0),
    ("1", 1),
    ("512", 512),
    ("007", 7),
    ("1K", 1024),
    ("64k", 65536),
    ("64KiB", 65536),
    ("64kib", 65536),
    ("16M", 16 * 2**20),
    ("3g", 3 * 2**30),
    ("1T", 2**40),
    ("2P", 2**51),
    ("7E", 7 * 2**60),
    ("9223372036854775807", SIZE_MAX),
]

NOT_SIZES = [
    "",
    "K",
    "-1",
    "+1",
    "1.5G",
    "64KB",  # 64,000 or 65,536: it depends on who reads it.
    "64B",
    "64X",
    "64KK",
    " 64K",
    "64K\n",
    "6_4",
    "0x40",
    "\u0663",  # A digit to int(), but not to us.
    "9" * 5000,
]

DURATIONS_S = [
    ("0s", 0.0),
    ("10ms", 0.010),
    ("35ms", 0.035),
    ("1.5s", 1.5),
    ("0.25ms", 0.000_25),
    ("200us", 0.000_2),
    ("86400s", 86_400.0),
]

NOT_DURATIONS = ["", "10", "ms", "-1ms", "1,5s", ".5s", "1.s", "1e3s", "10 ms", "10MS", "5m", "nans", "infs", "1s\n"]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_digits_and_a_power_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NOT_SIZES, ids=lambda text: repr(text[:10]))
def test_what_is_not_a_size_is_refused_on_one_line_with_the_value_and_the_expectation(text):
    with pytest.raises(UsageError) as refusal:
        parse_size(text, "block size")
    message = str(refusal.value)
    assert message.startswith(f"block size {text[:200]!r}")
    assert "expected" in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("text", ["9223372036854775808", "8E", "9999999999999999999E"])
def test_a_size_that_an_offset_cannot_reach_is_refused(text):
    with pytest.raises(UsageError, match="too large: expected less than 8E"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (1000, "1000"), (1024, "1K"), (1025, "1025"), (1536 * 1024, "1536K"), (2**62, "4E")],
)
def test_a_size_is_written_with_the_largest_letter_that_is_exact(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (8191, "8191"), (8193, "8K"), (9 * 2**20 - 1, "8M"), (7 * 2**29 + 5, "3584M"), (SIZE_MAX, "8191P")],
)
def test_for_people_a_size_is_rounded_down(size, text):
    assert format_about(size) == text


@given(st.integers(0, SIZE_MAX) | st.integers(0, 62).map(lambda power: 2**power))
def test_a_written_size_reads_back_as_the_same_number(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("text", "seconds"), DURATIONS_S)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", NOT_DURATIONS, ids=repr)
def test_what_is_not_a_duration_is_refused_on_one_line_with_the_value_and_the_expectation(text):
    with pytest.raises(UsageError) as refusal:
        parse_duration(text, "latency")
    message = str(refusal.value)
    assert message.startswith(f"latency {text!r}")
    assert "such as 10ms" in message
    assert "\n" not in message


def test_a_duration_longer_than_a_day_is_refused():
    with pytest.raises(UsageError, match="too long: expected at most 86400s"):
        parse_duration("86401s")
