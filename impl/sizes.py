"""Sizes and durations as people write them on a command line.

Shapes:  a size is decimal digits and one optional letter K, M, G, T, P or E, in either case, each a power of 1024;
         `iB` may follow the letter. A duration is a decimal number and a unit: us, ms or s.
Units:   sizes in bytes, durations in seconds.
Errors:  UsageError, one line with the value and what was expected.
Omits:   fractions of sizes, signs, blanks, and `KB`, which half the world reads as 1000 bytes.
"""

from __future__ import annotations

import re

from impl.errors import UsageError

# Offsets travel as 64-bit numbers in NBD, but the kernel's off_t has a sign.
SIZE_MAX = 2**63 - 1

# Longer than any test waits, and far below what time.sleep refuses.
DURATION_MAX_S = 86_400.0

_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50, "E": 2**60}
_UNITS_PER_SECOND = {"us": 1_000_000, "ms": 1_000, "s": 1}

# The digits are bounded because int() of thousands of them raises an error of its own.
_SIZE = re.compile(r"0*([0-9]{1,19})(?:([KMGTPE])(?:iB)?)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(us|ms|s)")


def parse_size(text: str, what: str = "size") -> int:
    """The bytes that `text` stands for, 0 to SIZE_MAX; `what` names the argument in the error."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{what} {quoted(text)} is not a size: expected bytes, or K, M, G, T, P, E, such as 64K")
    digits, letter = match.groups(default="")
    size = int(digits) * _FACTORS[letter.upper()]
    if size > SIZE_MAX:
        raise UsageError(f"{what} {quoted(text)} is too large: expected less than 8E (at most {SIZE_MAX} bytes)")
    return size


def format_size(size: int) -> str:
    """The shortest exact way to write `size`: `parse_size` gives the same number back."""
    assert size >= 0, f"size is {size}, expected 0 or more"
    letter = ""
    for candidate, factor in _FACTORS.items():
        if size and size % factor == 0:
            letter = candidate
    return f"{size // _FACTORS[letter]}{letter}"


def format_about(size: int) -> str:
    """`size` rounded down, for people: in the largest unit of which there are 8 or more."""
    assert size >= 0, f"size is {size}, expected 0 or more"
    unit = 1 << (10 * max(0, (size.bit_length() - 4) // 10))
    return format_size(size // unit * unit)


def parse_duration(text: str, what: str = "duration") -> float:
    """The seconds that `text` stands for, 0 to DURATION_MAX_S; `what` names the argument in the error."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{what} {quoted(text)} is not a duration: expected a number with us, ms or s, such as 10ms")
    number, unit = match.groups()
    seconds = float(number) / _UNITS_PER_SECOND[unit]  # Dividing rounds once: 35ms is the float 0.035 itself.
    if seconds > DURATION_MAX_S:
        raise UsageError(f"{what} {quoted(text)} is too long: expected at most {DURATION_MAX_S:.0f}s")
    return seconds


def quoted(text: str) -> str:
    """`text` for an error message: in quotes, on one line, and not longer than a line."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."
