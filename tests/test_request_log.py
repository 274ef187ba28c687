"""What -vv says of each request; and that without it nothing is in the way.

Source:  impl/server/request_log.py; NBD protocol, "Request types", "Command flags", "Error values".
"""

import logging
import re

import pytest
from raw_nbd import READ, RawClient, request
from servers import KIB, eventually

from impl.base.pattern import PatternBase
from impl.client import connect
from impl.nbd import replies
from impl.nbd.agreement import Agreement
from impl.nbd.constants import Command, CommandFlag, ErrorValue
from impl.nbd.requests import Request
from impl.server.commands import Commands, Later, Place
from impl.server.export import ExportOptions, make_export
from impl.server.outbox import FileSlice
from impl.server.request_log import LoggedCommands, describe, logged_if_wanted, outcome

C, F, E = Command, CommandFlag, ErrorValue
BLOCK = 64 * KIB


def asked(command, offset=0, length=0, flags=0, payload=b"", error=0):
    return Request(command, flags, 7, offset, length or len(payload), payload, error, "")


REQUESTS = [
    (asked(C.READ, 4096, 512), "READ offset 4096 length 512"),
    (asked(C.WRITE, 1, payload=b"mine", flags=F.FUA), "WRITE offset 1 length 4 FUA"),
    (asked(C.WRITE_ZEROES, 0, 9, F.FUA | F.FAST_ZERO), "WRITE_ZEROES offset 0 length 9 FUA|FAST_ZERO"),
    (asked(C.FLUSH), "FLUSH"),
    (asked(C.TRIM, 0, 9, 0x8001), "TRIM offset 0 length 9 FUA|0x8000"),
    (asked(77, 1, 2), "command 77 offset 1 length 2"),
]

REPLIES = [
    ([replies.simple_reply(7)], "ok"),
    ([replies.simple_reply(7), b"data"], "ok"),
    ([replies.simple_reply(7, E.ENOSPC)], "ENOSPC"),
    ([replies.done_chunk(7)], "ok"),
    ([replies.data_chunk_header(7, 0, 4, done=True), b"data"], "ok"),
    ([replies.data_chunk_header(7, 0, 4, done=False), FileSlice(0, 0, 4, None), replies.done_chunk(7)], "ok"),
    ([replies.hole_chunk(7, 0, 4, done=True)], "ok"),
    ([replies.block_status_chunk(7, 1, [(4, 3)], done=True)], "ok"),
    ([replies.error_chunk(7, E.EIO, "the base could not be read")], "EIO"),
    ([replies.error_offset_chunk(7, E.EINVAL, "", 5)], "EINVAL"),
]


@pytest.mark.parametrize(("asked_for", "said"), REQUESTS)
def test_a_request_is_told_in_the_standards_words(asked_for, said):
    assert describe(asked_for) == said


@pytest.mark.parametrize(("reply", "said"), REPLIES)
def test_what_came_of_it_is_what_the_reply_says(reply, said):
    assert outcome(reply) == said


@pytest.fixture
def commands():
    """Of a connection to an overlay over a slow base, so that reads are for workers, and writes of blocks are not."""
    export = make_export(PatternBase(16 * BLOCK, latency_s=0.001), ExportOptions(store="memory"))
    yield Commands(export, Agreement(export.info, export.info.flags, False, ()))
    export.close()


@pytest.fixture
def wanted(caplog):
    caplog.set_level(logging.DEBUG, "cowproof.requests")
    return caplog


def said_of(log):
    """Its lines, each without how long it took, which has to be there."""
    lines = [record.getMessage() for record in log.records if record.name == "cowproof.requests"]
    assert all(re.search(r", [0-9]+\.[0-9]{3} ms$", line) for line in lines), lines
    return [line.rpartition(", ")[0] for line in lines]


def test_where_it_is_not_wanted_the_commands_are_themselves(commands, caplog):
    """So it costs nothing: what answers is the very object that would answer if there were no such log."""
    caplog.set_level(logging.INFO, "cowproof.requests")
    assert logged_if_wanted(commands, "somebody") is commands


def test_a_request_that_is_answered_at_once_is_told(commands, wanted):
    logged = logged_if_wanted(commands, "somebody")
    assert isinstance(logged, LoggedCommands)
    assert logged.start(asked(C.WRITE, BLOCK, payload=bytes(BLOCK))) == [replies.simple_reply(7)]
    assert said_of(wanted) == [f"somebody: WRITE offset {BLOCK} length {BLOCK}: ok"]


def test_a_request_that_is_given_to_a_worker_is_told_once_it_is_answered(commands, wanted):
    later = logged_if_wanted(commands, "somebody").start(asked(C.READ, 5, 100))
    assert isinstance(later, Later)
    assert (later.place, said_of(wanted)) == (Place.BASE, [])
    reply = later.run()
    assert (reply[0], said_of(wanted)) == (replies.simple_reply(7), ["somebody: READ offset 5 length 100: ok"])


def test_a_request_that_is_refused_is_told(commands, wanted):
    logged = logged_if_wanted(commands, "somebody")
    logged.start(asked(C.READ, 1 << 40, 1, error=E.EINVAL))
    logged.error(asked(C.FLUSH), E.ESHUTDOWN, "the server is shutting down")
    assert said_of(wanted) == [f"somebody: READ offset {1 << 40} length 1: EINVAL", "somebody: FLUSH: ESHUTDOWN"]


# A line for each, from the server


def requests_in(server):
    return re.findall(r"^cowproof: pid [0-9]+: ([A-Z_]+ .*), [0-9.]+ ms$", server.stderr, re.MULTILINE)


def test_with_vv_the_server_tells_each_request_and_with_v_none(serve):
    for option, told in (("-v", []), ("-vv", ["WRITE offset 3 length 4 FUA: ok", "READ offset 0 length 9: ok"])):
        server = serve("memory:1M", option)
        with connect(server.uri) as client:
            client.pwrite(3, b"mine", fua=True)
            assert client.pread(0, 9) == b"\0\0\0mine\0\0"
        eventually(lambda server=server: ": gone" in server.stderr, "the client has gone")
        assert requests_in(server) == told


def test_with_vv_what_the_protocol_refuses_is_told_too(serve):
    server = serve("memory:1M", "-vv")
    with RawClient(server.socket) as client:
        client.send(request(READ, 1, 1 << 30, 512))
        assert client.reply()[1] == E.EINVAL
    eventually(lambda: ": gone" in server.stderr, "the client has gone")
    assert requests_in(server) == [f"READ offset {1 << 30} length 512: EINVAL"]
