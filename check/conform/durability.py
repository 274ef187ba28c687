"""Rules of what has to outlive the server: the server is killed, started again over the same files, and asked.

Killing a process loses what it kept to itself, not what it gave to the kernel, and it is power that fails. So two rules
look at what it asks of the kernel, too: whoever writes to a file has to sync it before the reply.

Servers that are not said to be persistent, and lose what they were ended in order with, are not held to this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from check.conform.disk import Disk
from check.conform.place import Place
from check.conform.rule import Failure, Need, NotApplicable, NotOffered, rule
from check.conform.subject import Subject
from check.conform.trace import Seen, traced
from impl.client import Client, connect

CLAIM = "persistent"
DISK = Disk(1 << 20, True)
PIECE = 64 << 10
ANSWER_S = 10.0
TURNS = 4  # a sync that only begins before the reply may end in time by luck


def survives(place: Place, what: str, ask: Callable[[Client], dict[int, bytes]], *, is_killed: bool) -> None:
    """Do something, end the server, and look for what should be there."""
    with place.running(is_killed=is_killed):
        client = connect(place.target.uri, timeout_s=ANSWER_S)
        if client.size < DISK.size:
            client.close()
            raise NotApplicable(f"the device has {client.size} bytes, expected {DISK.size}")
        expected = ask(client)
        if not is_killed:
            client.disconnect()
    client.close()
    with place.running(), connect(place.target.uri, timeout_s=ANSWER_S) as client:
        for offset, data in expected.items():
            found = client.pread(offset, len(data))
            if found != data:
                wrong = next(at for at, (one, two) in enumerate(zip(found, data, strict=True)) if one != two)
                raise Failure(f"{what}: byte {offset + wrong} is {found[wrong]:02x}, expected {data[wrong]:02x}")


@contextmanager
def persistent(subject: Subject) -> Iterator[Place]:
    """A place where what is written is still there when the server is started again, or has to be."""
    with subject.place(DISK) as place:
        try:
            survives(place, "", _flushed, is_killed=False)
        except Failure:
            if CLAIM not in subject.settings.claims:
                why = "what is written goes with the server, and need not stay; if it should: --claim persistent"
                raise NotApplicable(why) from None
        yield place


def _flushed(client: Client) -> dict[int, bytes]:
    """Something written and flushed."""
    if client.read_only:
        raise NotOffered("the export is read-only")
    data = b"\xa1" * PIECE
    client.pwrite(0, data)
    if client.can_flush:
        client.flush()
    return {0: data}


@rule("durability/persistent", Need.CLAIM, "(none)")
def is_persistent(subject: Subject) -> None:
    """What was written and flushed is there when a server that was ended in order is started again."""
    if CLAIM not in subject.settings.claims:
        raise NotApplicable("not claimed: --claim persistent")
    with subject.place(DISK) as place:
        survives(place, "after SIGTERM, and a new start", _flushed, is_killed=False)


@rule("durability/flush", Need.MUST, "NBD_CMD_FLUSH; Ordering of messages and writes")
def flush(subject: Subject) -> None:
    """What was written before NBD_CMD_FLUSH is there when the server was killed, and is started again."""

    def ask(client: Client) -> dict[int, bytes]:
        if not client.can_flush:
            raise NotOffered("no NBD_FLAG_SEND_FLUSH")
        expected = {number * PIECE: bytes([0xB0 + number]) * PIECE for number in range(1, 4)}
        for offset, data in expected.items():
            client.pwrite(offset, data)
        client.flush()
        return expected

    with persistent(subject) as place:
        survives(place, "written, flushed, and the server killed", ask, is_killed=True)


@rule("durability/fua", Need.MUST, "NBD_CMD_FLAG_FUA; Ordering of messages and writes")
def fua(subject: Subject) -> None:
    """What was written with NBD_CMD_FLAG_FUA is there when the server was killed, and is started again."""

    def ask(client: Client) -> dict[int, bytes]:
        if not client.can_fua:
            raise NotOffered("no NBD_FLAG_SEND_FUA")
        client.pwrite(6 * PIECE, b"\xf6" * PIECE, fua=True)
        client.pwrite(7 * PIECE, b"\xf7" * PIECE, fua=True)
        return {6 * PIECE: b"\xf6" * PIECE, 7 * PIECE: b"\xf7" * PIECE}

    with persistent(subject) as place:
        survives(place, "written with FUA, and the server killed", ask, is_killed=True)


@rule("durability/multi-conn", Need.MUST, "NBD_FLAG_CAN_MULTI_CONN; Ordering of messages and writes")
def multi_conn(subject: Subject) -> None:
    """NBD_CMD_FLUSH on one connection covers what others have written, where NBD_FLAG_CAN_MULTI_CONN is set."""
    with persistent(subject) as place:

        def ask(client: Client) -> dict[int, bytes]:
            if not (client.can_multi_conn and client.can_flush):
                raise NotOffered("no NBD_FLAG_CAN_MULTI_CONN, or no NBD_FLAG_SEND_FLUSH")
            data = b"\xe9" * PIECE
            client.pwrite(9 * PIECE, data)
            with connect(place.target.uri, timeout_s=ANSWER_S) as other:
                other.flush()
            return {9 * PIECE: data}

        survives(place, "written, flushed on another connection, and the server killed", ask, is_killed=True)


def reaches_the_disk(place: Place, ask: Callable[[Client, int, bytes], None]) -> None:
    """Have something written for good, again and again; and look at what was synced by the time of each reply."""
    looks = []
    with place.running(), connect(place.target.uri, timeout_s=ANSWER_S) as client:
        if client.size < DISK.size:
            raise NotApplicable(f"the device has {client.size} bytes, expected {DISK.size}")
        with traced(place.processes(), place.folder) as trace:
            for turn in range(TURNS):
                mark = b"%08x%08x" % (random.getrandbits(32), turn)
                data = mark * (PIECE // len(mark))
                ask(client, turn * PIECE, data)
                looks.append(trace.since_last(mark, PIECE))
                # What the command was told of, and where the data are, is the disk; what else it writes, is not.
                for file in place.files_with(data) if looks[-1] is Seen.UNSYNCED else []:
                    if not trace.doubts(file, place.processes()):
                        raise Failure(f"it was written to {file.name}, and answered: nothing was synced meanwhile")
    if Seen.SYNCED not in looks:
        raise NotApplicable("it is not seen how it writes this to its disk, nor, then, whether that is synced")


@rule("durability/flush-sync", Need.MUST, "NBD_CMD_FLUSH")
def flush_syncs(subject: Subject) -> None:
    """What was written before NBD_CMD_FLUSH has reached the disk when that is answered, by fsync(2) or the like."""

    def ask(client: Client, offset: int, data: bytes) -> None:
        if not client.can_flush:
            raise NotOffered("no NBD_FLAG_SEND_FLUSH")
        client.pwrite(offset, data)
        client.flush()

    with persistent(subject) as place:
        reaches_the_disk(place, ask)


@rule("durability/fua-sync", Need.MUST, "NBD_CMD_FLAG_FUA")
def fua_syncs(subject: Subject) -> None:
    """What is written with NBD_CMD_FLAG_FUA has reached the disk when that is answered, by fsync(2) or the like."""

    def ask(client: Client, offset: int, data: bytes) -> None:
        if not client.can_fua:
            raise NotOffered("no NBD_FLAG_SEND_FUA")
        client.pwrite(offset, data, fua=True)

    with persistent(subject) as place:
        reaches_the_disk(place, ask)
