"""What an input of the fuzzer says: how a codec is set, what is sent to it, and in which pieces.

Shapes:  HEADER_BYTES, then the stream. The header is SETTINGS_BYTES that each target reads as it likes; how often what
         is behind a prefix is repeated; how long that prefix is; how much is put in, and where (two bytes); and
         the sizes of three pieces, which come in turn. An input that is too short ends in zeroes. Every input means
         something, so that all of them are worth trying.
Units:   bytes.
Bounds:  a stream of at most STREAM_MAX_BYTES, however short the input: so the limits of the codec are within reach of
         inputs that are quickly changed. After PIECES_MAX pieces the rest comes in large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from typing import NamedTuple

SETTINGS_BYTES = 8
HEADER_BYTES = 16
STREAM_MAX_BYTES = 1 << 20
PIECES_MAX = 1000
REST_BYTES = 64 << 10
FILLER = b"a"
LONG = 128  # from this code on, a byte of the header stands for more than itself
WHOLE = (STREAM_MAX_BYTES,)


class Input(NamedTuple):
    """What an input says."""

    settings: bytes
    sizes: tuple[int, ...]
    stream: bytes


def decode(data: bytes) -> Input:
    """Of any bytes."""
    header = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    repeats, prefix, filler, *place = header[SETTINGS_BYTES : SETTINGS_BYTES + 5]
    sizes = tuple(_size(code) for code in header[SETTINGS_BYTES + 5 :])
    sent = data[HEADER_BYTES:]
    first, body = sent[:prefix], sent[prefix:]
    at = int.from_bytes(place, "big") % (len(body) + 1)
    body = body[:at] + FILLER * _filler(filler) + body[at:]
    return Input(header[:SETTINGS_BYTES], sizes, (first + _repeated(body, _repeats(repeats)))[:STREAM_MAX_BYTES])


def encode(
    settings: Sequence[int],
    stream: bytes,
    sizes: Sequence[int] = (),
    *,
    repeats: int = 0,
    prefix: int = 0,
    filler: int = 0,
    at: int = 0,
) -> bytes:
    """An input; all but the stream and `at` as codes, each of a byte."""
    codes = (repeats, prefix, filler, *at.to_bytes(2, "big"), *bytes(sizes).ljust(3, b"\0"))
    header = bytes(settings).ljust(SETTINGS_BYTES, b"\0") + bytes(codes)
    assert len(header) == HEADER_BYTES, (settings, sizes)
    return header + stream


def pieces(stream: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """The stream, in pieces of these sizes."""
    at = 0
    for size in chain(islice(cycle(sizes), PIECES_MAX), repeat(REST_BYTES)):
        if at >= len(stream):
            return
        yield stream[at : at + size]
        at += size


def _size(code: int) -> int:
    """0: all that is left; small ones as they are; else powers of two, from 16 to 512 KiB."""
    if not code:
        return STREAM_MAX_BYTES
    return code if code < LONG else 1 << (4 + code % 16)


def _filler(code: int) -> int:
    """Nothing, or a power of two, from 16 to 512 KiB."""
    return 0 if code < LONG else 1 << (4 + (code - LONG) // 8)


def _repeats(code: int) -> int:
    """Once, or a power of two, from 2 to 4,096."""
    return 1 if code < LONG else 2 << (code - LONG) // 11


def _repeated(body: bytes, count: int) -> bytes:
    return body * min(count, 1 + STREAM_MAX_BYTES // max(1, len(body)))
