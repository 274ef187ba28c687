"""Programs of clients: how they are written, and what becomes of them on a small device."""

import pytest

from check.explore.programs import Ask, format_program, make_program, parse_program
from impl.errors import UsageError
from model.block import State
from model.device import Cache, Flush, Read, Status, Trim, Write, Zero

K = 1 << 10

WRITTEN = [
    ("write 0+512", ((Ask("write", 0, 512),),)),
    ("read 0+64K | write 64K+1", ((Ask("read", 0, 64 * K),), (Ask("write", 64 * K, 1),))),
    ("flush ; trim 5+6", ((Ask("flush"), Ask("trim", 5, 6)),)),
    ("zero 0+1 no-hole fast", ((Ask("zero", 0, 1, ("no-hole", "fast")),),)),
    ("cache 1K+2K | status 0+3K", ((Ask("cache", K, 2 * K),), (Ask("status", 0, 3 * K),))),
]


@pytest.mark.parametrize(("text", "asks"), WRITTEN)
def test_a_program_is_read_as_it_is_written_and_written_as_it_is_read(text, asks):
    assert parse_program(text) == asks
    assert format_program(asks) == text


WRONG = {
    "": "is not a request",
    "write": "with a range",
    "write 0": "is not a request",
    "writes 0+1": "is not a request",
    "write 0+0": "of no bytes",
    "write 0+1 fast": "has no flag",
    "zero 0+1 slow": "has no flag",
    "flush 0+1": "is not a request",
    "read 0+1 |": "is not a request",
    "read 0+x": "is not a size",
    " | ".join(["flush"] * 27): "27 clients",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:20])
def test_a_text_that_is_no_program_is_refused_with_what_is_wrong(text):
    with pytest.raises(UsageError, match=WRONG[text]):
        parse_program(text)


# Program, device's size, and its requests on the small device: offsets and lengths.
SMALL = [
    ("write 0+512", None, [(0, 1)], 2),
    ("write 0+64K", None, [(0, 2)], 2),
    ("write 0+512 | write 512+512", None, [(0, 1), (1, 1)], 3),
    ("write 0+512 | write 0+64K", None, [(0, 1), (0, 2)], 2),
    ("write 100+70000 | trim 64K+64K", None, [(1, 2), (2, 2)], 4),
    ("read 32K+64K", None, [(1, 2)], 4),
    ("write 0+66560", 66560, [(0, 3)], 3),
    ("write 65536+10", 66560, [(3, 1)], 5),
]


@pytest.mark.parametrize(("text", "size", "ranges", "small_size"), SMALL)
def test_a_small_device_tells_apart_what_the_program_tells_apart_and_no_more(text, size, ranges, small_size):
    program = make_program(parse_program(text), size=size)
    assert [(request.offset, request.length) for client in program.requests for request in client] == ranges
    assert program.disk.size == small_size
    scale = program.disk.scale
    for client, asked in zip(program.requests, program.asks, strict=True):
        for request, ask in zip(client, asked, strict=True):
            assert scale.real(request.offset) == ask.offset
            assert scale.real(request.offset + request.length) == ask.end


def test_every_block_moves_in_two_parts_at_least():
    assert make_program(parse_program("write 0+128K")).disk.block_size == 2


def test_a_last_block_that_is_short_is_so_on_the_small_device():
    disk = make_program(parse_program("read 0+1"), size=64 * K + 1).disk
    assert disk.size % disk.block_size != 0


def test_requests_become_the_models():
    program = make_program(
        parse_program("read 0+64K; write 0+64K; zero 0+64K fast; trim 0+64K; cache 0+64K; status 0+64K; flush")
    )
    kinds = [type(request) for request in program.requests[0]]
    assert kinds == [Read, Write, Zero, Trim, Cache, Status, Flush]


def test_no_two_writers_write_the_same_byte():
    program = make_program(parse_program("write 0+128K ; write 0+64K | write 0+128K"), "A")
    written = [value for client in program.requests for request in client for value in request.data]
    everything = [*program.disk.base, *filter(None, program.disk.stored), *written]
    assert len(set(everything)) == len(everything)
    assert 0 not in everything


def test_blocks_begin_in_the_states_that_are_named():
    disk = make_program(parse_program("read 0+192K"), "AT").disk
    assert disk.initial == (State.ALLOCATED, State.TRIMMED, State.NOT_ALLOCATED)


@pytest.mark.parametrize(
    ("text", "initial", "size", "wrong"),
    [
        ("read 0+1", "X", None, "initial state 'X'"),
        ("read 0+1", "NN", None, "for 2 blocks"),
        ("read 0+128K", "", 64 * K, "beyond the device"),
        (" | ".join(["write 0+128K ; write 0+1K ; write 3K+1 ; write 7K+1"] * 8), "", None, "make it smaller"),
    ],
)
def test_a_program_that_does_not_fit_is_refused(text, initial, size, wrong):
    with pytest.raises(UsageError, match=wrong):
        make_program(parse_program(text), initial, size=size)
