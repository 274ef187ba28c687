"""Rules of input that makes no sense: whatever one client sends, the server goes on serving the others.

A witness, a connection of another client, stands by. Its connection must not be ended ("Terminating the transmission
phase": only by whoever detects a violation of the other party), and new ones are taken.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from check.conform.rule import Failure, Need, NotApplicable, add
from check.conform.subject import Subject
from check.conform.talk import as_wanted, chosen, read, takes_another, told
from impl.nbd import wire
from impl.nbd.constants import OPTION_MAGIC, ClientFlag, Command, Info, Option

SEED = 20260
TIMES, TIMES_QUICK = 200, 20
WAIT_S = 0.02
SECTION = "Terminating the transmission phase"

FLAGS = wire.CLIENT_FLAGS.pack(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)


def conversation(export: str) -> list[bytes]:
    """All that a client may say, in the order that makes sense."""
    return [
        FLAGS,
        wire.pack_option(Option.STRUCTURED_REPLY),
        wire.pack_option(Option.LIST),
        wire.pack_option(Option.SET_META_CONTEXT, wire.pack_meta_query(export, ("base:allocation",))),
        wire.pack_option(Option.INFO, wire.pack_info_request(export, (Info.NAME, Info.BLOCK_SIZE))),
        wire.pack_option(Option.GO, wire.pack_info_request(export, ())),
        wire.pack_request(Command.READ, 0, 1, 0, 512),
        wire.pack_request(Command.READ, 4, 2, 512, 512),
        wire.pack_request(Command.BLOCK_STATUS, 0, 3, 0, 4096),
        wire.pack_request(Command.CACHE, 0, 4, 0, 512),
        wire.pack_request(Command.FLUSH, 0, 5, 0, 0),
        wire.pack_request(Command.READ, 0, 6, 0, 512),
    ]


def mutated(rng: random.Random, messages: Sequence[bytes]) -> bytes:
    """The conversation with some bytes changed, left out, or put in."""
    found = bytearray(b"".join(messages))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found))
        kind = rng.randrange(4)
        if kind == 0:
            found[at] = rng.randrange(256)
        elif kind == 1:
            found[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF)))
        elif kind == 2:
            del found[at : at + rng.randint(1, 8)]
        else:
            found[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(found)


@contextmanager
def witness(subject: Subject) -> Iterator[Callable[[str], None]]:
    """Another client; what is yielded asks whether it is still served, and others would be."""
    with chosen(subject) as link:

        def look(after: str) -> None:
            try:
                error, _ = read(link, 1, 0, link.unit)
            except Failure as failure:
                raise Failure(f"{after}: another connection is not served any longer: {failure}") from None
            if error:
                raise Failure(f"{after}: another connection reads {link.unit} bytes: {told(error)}")
            try:
                with chosen(subject) as fresh:
                    read(fresh, 1, 0, fresh.unit)
            except Failure as failure:
                raise Failure(f"{after}: a new connection is not served: {failure}") from None

        yield look


def say(subject: Subject, data: bytes) -> None:
    """All of it to a new connection, hear what comes of it, and hang up."""
    with subject.link() as link:
        if subject.target.tls is None:
            link.receive(wire.GREETING.size, "greeting")
        else:
            link.greet()
            as_wanted(link, subject)
            data = data[len(FLAGS) :]
        link.patience(WAIT_S)
        with suppress(Failure):
            link.send(data)
        link.drain()


def check_inputs(subject: Subject, inputs: Callable[[Subject], Iterator[tuple[str, bytes]]]) -> None:
    """The witness is served after each input."""
    if not takes_another(subject):
        raise NotApplicable("the server takes one connection at a time")
    with witness(subject) as look:
        for what, data in inputs(subject):
            subject.settings.say(what)
            try:
                say(subject, data)
            except Failure as failure:
                raise Failure(f"before {what}: a new connection is not served: {failure}") from None
            look(f"after {what}")


def _times(subject: Subject) -> int:
    return TIMES_QUICK if subject.settings.quick else TIMES


def mutations(subject: Subject) -> Iterator[tuple[str, bytes]]:
    """Conversations with mistakes."""
    messages = conversation(subject.target.export)
    for number in range(_times(subject)):
        yield f"mutation {number} of seed {SEED}", mutated(random.Random(SEED + number), messages)


def halves(subject: Subject) -> Iterator[tuple[str, bytes]]:
    """A conversation that ends at every byte, or some."""
    whole = b"".join(conversation(subject.target.export))
    for at in range(0, len(whole), max(1, len(whole) // _times(subject))):
        yield f"{at} bytes of a conversation", whole[:at]


def boasts(subject: Subject) -> Iterator[tuple[str, bytes]]:
    """Lengths that nothing follows up to."""
    for option in (Option.LIST, Option.GO, Option.SET_META_CONTEXT, Option.EXPORT_NAME, 0x7FFF_0001):
        for length in (0x0001_0001, 0x7FFF_FFFF, 0xFFFF_FFFF):
            header = struct.pack(">QII", OPTION_MAGIC, option, length)
            yield f"option {int(option)} that is said to be {length} bytes long", FLAGS + header + bytes(5000)
    begin = b"".join(conversation(subject.target.export)[:6])
    for length in (0x0200_0001, 0x7FFF_FFFF, 0xFFFF_FFFF):
        request = wire.pack_request(Command.WRITE, 0, 7, 1 << 62, length)
        yield f"a write that is said to be {length} bytes long", begin + request + bytes(5000)


def noise(subject: Subject) -> Iterator[tuple[str, bytes]]:
    """Bytes at random, from the beginning, or from the transmission phase on."""
    begin = b"".join(conversation(subject.target.export)[:6])
    for number in range(_times(subject) // 4):
        rng = random.Random(SEED + number)
        before = begin if number % 2 else FLAGS
        yield f"noise {number} of seed {SEED}", before + rng.randbytes(rng.randint(1, 2000))


INPUTS = {
    "mutations": (mutations, "Conversations with mistakes in them leave other clients alone"),
    "halves": (halves, "Clients that leave in the middle of a message leave other clients alone"),
    "lengths": (boasts, "Messages that are said to be far longer than they are leave other clients alone"),
    "noise": (noise, "Bytes at random leave other clients alone"),
}

for _name, (_inputs, _says) in INPUTS.items():
    add(f"malformed/{_name}", Need.MUST, SECTION, _says, partial(check_inputs, inputs=_inputs))
