"""What many rules begin with, and end with: a connection that has come so far, and whether it still goes on.

Errors:  Failure where the server does not come so far; NotOffered where it need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from check.conform.link import DATA, Link
from check.conform.rule import Failure, NotApplicable, NotOffered
from check.conform.subject import Subject
from impl.nbd.constants import Command, ErrorValue, Option, OptionReply, TransmissionFlag

NEEDED = {
    Command.FLUSH: TransmissionFlag.SEND_FLUSH,
    Command.TRIM: TransmissionFlag.SEND_TRIM,
    Command.CACHE: TransmissionFlag.SEND_CACHE,
    Command.WRITE_ZEROES: TransmissionFlag.SEND_WRITE_ZEROES,
}
LIST_MAY_BE = (
    OptionReply.ACK,
    OptionReply.ERR_POLICY,
    OptionReply.ERR_UNSUP,
    OptionReply.ERR_TLS_REQD,
    OptionReply.ERR_PLATFORM,
)


@contextmanager
def greeted(subject: Subject, *, in_the_clear: bool = False) -> Iterator[Link]:
    """A connection whose greeting has been answered; with TLS, if the server wants that for everything."""
    with subject.link() as link:
        link.greet()
        if not in_the_clear:
            as_wanted(link, subject)
        yield link


def as_wanted(link: Link, subject: Subject) -> None:
    """With TLS, if that is to be spoken."""
    if subject.target.tls is not None:
        answer = link.start_tls()
        if not answer.granted:
            raise Failure(f"NBD_OPT_STARTTLS: {answer.told}")


@contextmanager
def chosen(
    subject: Subject, *contexts: str, structured: bool = False, extended: bool = False, writes: bool = False
) -> Iterator[Link]:
    """A connection in the transmission phase. `contexts` have to be selected, all of them; with `writes`, writable."""
    with greeted(subject) as link:
        if extended and not link.extended():
            raise NotOffered("no extended headers")
        if (structured or contexts) and not extended and not link.structured():
            raise NotOffered("no structured replies")
        if contexts and (not link.select(*contexts).granted or set(contexts) - set(link.contexts)):
            raise NotOffered(f"no context {' and '.join(sorted(set(contexts) - set(link.contexts)))}")
        link.enter(subject.target.export)
        if not link.end:
            raise NotApplicable(f"the export has {link.size} bytes")
        if writes and not link.can_write:
            raise NotOffered("the export is read-only")
        yield link


def still_in_step(link: Link) -> None:
    """The next option is understood."""
    answer = link.option(Option.LIST)
    if answer.final not in LIST_MAY_BE:
        raise Failure(f"NBD_OPT_LIST after that: {answer.told}")


def still_served(link: Link) -> None:
    """The next request is understood: one that every server has."""
    error, found = read(link, 0xA11, 0, link.unit)
    if error:
        raise Failure(f"a read of {link.unit} bytes after that: {told(error)}")
    assert len(found) == link.unit


def read(link: Link, cookie: int, offset: int, length: int, flags: int = 0) -> tuple[int, bytes]:
    """The error of a read, or what it has found; of chunks, as many bytes as there were, whatever they say of where."""
    link.request(Command.READ, cookie, offset, length, flags)
    parts = link.whole_answer(cookie)
    error = next((part.error for part in parts if part.error), 0)
    if error:
        return error, b""
    if parts[0].chunk_type is None:
        return 0, link.receive(length, "data of a simple reply")
    found = bytearray(length)
    for part in parts:
        if part.chunk_type == DATA:
            at, count = int.from_bytes(part.payload[:8], "big") - offset, len(part.payload) - 8
            if at < 0 or count < 1 or at + count > length:
                raise Failure(f"a read of [{offset}, +{length}) is answered with data of [{offset + at}, +{count})")
            found[at : at + count] = part.payload[8:]
    return 0, bytes(found)


def readable(link: Link, cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
    """What a read has found; NotApplicable where the disk has an error."""
    error, found = read(link, cookie, offset, length, flags)
    if error:
        raise NotApplicable(f"a read of [{offset}, +{length}): {told(error)}")
    return found


def takes_another(subject: Subject) -> bool:
    """Whether a second connection is served beside one that is open."""
    with chosen(subject):
        try:
            with chosen(subject):
                return True
        except Failure:
            return False


def told(error: int) -> str:
    """An error by its name."""
    return "success" if not error else ErrorValue(error).name if error in list(ErrorValue) else f"error {error}"


def commands_of(link: Link) -> list[Command]:
    """The commands that may be asked for, but DISC."""
    writes = [Command.WRITE] if link.can_write else []
    flagged = [command for command, flag in NEEDED.items() if link.flags & flag]
    status = [Command.BLOCK_STATUS] if link.contexts else []
    return [Command.READ, *writes, *flagged, *status]


def ask(link: Link, command: Command, cookie: int, offset: int, length: int, flags: int = 0) -> int:
    """The error of a request; a write is of zeroes."""
    if command == Command.READ:
        return read(link, cookie, offset, length, flags)[0]
    if command == Command.WRITE:
        link.write(cookie, offset, bytes(length), flags)
    elif command == Command.FLUSH:
        link.request(command, cookie, 0, 0, flags)
    else:
        link.request(command, cookie, offset, length, flags)
    return link.error_of(cookie)
