"""Rules of the handshake."""

from __future__ import annotations

import struct
from contextlib import suppress

from check.conform.link import Link, contexts_in, name_of
from check.conform.rule import Closed, Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import as_wanted, greeted, still_in_step
from impl.nbd import wire
from impl.nbd.constants import OPTION_REPLY_MAGIC, ClientFlag, Info, Option, OptionReply, TransmissionFlag

MUST, SHOULD = Need.MUST, Need.SHOULD
UNKNOWN_OPTION = 0x7FFF_0001
UNKNOWN_COMMAND = 0x7FFF
ALLOCATION = "base:allocation"
NO_SUCH_EXPORT = "x-no-export-has-this-name"


def refused(link: Link, option: int, data: bytes, *kinds: OptionReply, what: str) -> None:
    """An option is refused with one of these replies, and the next one is understood."""
    answer = link.option(option, data)
    if answer.final not in kinds:
        raise Failure(f"{what}: {answer.told}, expected {' or '.join(name_of(kind) for kind in kinds)}")
    still_in_step(link)


@rule("handshake/greeting", MUST, "Newstyle negotiation")
def greeting(subject: Subject) -> None:
    """The server greets with NBDMAGIC, IHAVEOPT and NBD_FLAG_FIXED_NEWSTYLE."""
    with subject.link() as link:
        link.greet()


@rule("handshake/greeting-flags", MUST, "Handshake flags")
def greeting_flags(subject: Subject) -> None:
    """The greeting has no flags but NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES."""
    with greeted(subject, in_the_clear=True) as link:
        if link.greeting_flags & ~3:
            raise Failure(f"handshake flags {link.greeting_flags:#x}")


@rule("handshake/unknown-option", MUST, "Baseline; NBD_REP_ERR_UNSUP")
def unknown_option(subject: Subject) -> None:
    """An option that the server does not know is refused with NBD_REP_ERR_UNSUP, and the next one is understood."""
    with greeted(subject) as link:
        refused(link, UNKNOWN_OPTION, b"", OptionReply.ERR_UNSUP, what="an unknown option")


@rule("handshake/unknown-option-with-data", MUST, "Baseline")
def unknown_option_with_data(subject: Subject) -> None:
    """The data of an option that the server does not know are skipped."""
    with greeted(subject) as link:
        kinds = (OptionReply.ERR_UNSUP, OptionReply.ERR_TOO_BIG, OptionReply.ERR_INVALID)
        refused(link, UNKNOWN_OPTION, b"IHAVEOPT" * 100, *kinds, what="an unknown option with 800 bytes")


@rule("handshake/client-flags", MUST, "Newstyle negotiation")
def client_flags(subject: Subject) -> None:
    """A client whose flags the server does not know is hung up on."""
    with subject.link() as link:
        link.greet(int(ClientFlag.FIXED_NEWSTYLE) | 1 << 20)
        link.send(wire.pack_option(Option.LIST))
        link.ends("unknown client flags")


@rule("handshake/abort", MUST, "NBD_OPT_ABORT")
def abort(subject: Subject) -> None:
    """NBD_OPT_ABORT is acknowledged."""
    with greeted(subject) as link:
        answer = link.option(Option.ABORT)
        if not answer.granted:
            raise Failure(f"NBD_OPT_ABORT: {answer.told}")


@rule("handshake/abort-with-data", SHOULD, "NBD_OPT_ABORT")
def abort_with_data(subject: Subject) -> None:
    """Data of NBD_OPT_ABORT are ignored."""
    with greeted(subject) as link:
        answer = link.option(Option.ABORT, b"data")
        if not answer.granted:
            raise Failure(f"NBD_OPT_ABORT with 4 bytes: {answer.told}")


@rule("handshake/list-with-data", SHOULD, "NBD_OPT_LIST")
def list_with_data(subject: Subject) -> None:
    """NBD_OPT_LIST with data is refused with NBD_REP_ERR_INVALID."""
    with greeted(subject) as link:
        answer = link.option(Option.LIST, b"data")
        if answer.final in (OptionReply.ERR_POLICY, OptionReply.ERR_UNSUP):
            raise NotOffered(f"NBD_OPT_LIST: {answer.told}")
        if answer.final != OptionReply.ERR_INVALID:
            raise Failure(f"NBD_OPT_LIST with 4 bytes: {answer.told}")
        still_in_step(link)


@rule("handshake/list", MUST, "Baseline; NBD_OPT_LIST; NBD_REP_SERVER")
def list_exports(subject: Subject) -> None:
    """NBD_OPT_LIST is answered with well-formed NBD_REP_SERVER, and at last NBD_REP_ACK."""
    with greeted(subject) as link:
        answer = link.option(Option.LIST)
        if answer.final == OptionReply.ERR_UNSUP:
            raise Failure("NBD_OPT_LIST: NBD_REP_ERR_UNSUP; every server has to have it")
        if not answer.granted:
            raise NotOffered(f"NBD_OPT_LIST: {answer.told}")
        for kind, data in answer.between:
            if kind != OptionReply.SERVER:
                raise Failure(f"NBD_OPT_LIST is answered with {name_of(kind)}")
            if len(data) < 4 or struct.unpack_from(">I", data)[0] > len(data) - 4:
                raise Failure(f"NBD_REP_SERVER of {len(data)} bytes has a name that is longer than that")


@rule("handshake/go-malformed", SHOULD, "NBD_OPT_INFO and NBD_OPT_GO")
def go_malformed(subject: Subject) -> None:
    """NBD_OPT_GO whose name is longer than its data is NBD_REP_ERR_INVALID, or hung up on; its data are skipped."""
    with greeted(subject) as link:
        data = struct.pack(">I", 1000) + b"name" + struct.pack(">H", 0)
        try:
            answer = link.option(Option.GO, data)
        except Closed:
            return  # of a client that breaks a MUST, one "MAY initiate a hard disconnect"
        if answer.final == OptionReply.ERR_UNSUP:
            raise NotOffered("no NBD_OPT_GO")
        if answer.final != OptionReply.ERR_INVALID:
            raise Failure(f"NBD_OPT_GO with a name beyond its end: {answer.told}, expected NBD_REP_ERR_INVALID")
        still_in_step(link)


@rule("handshake/info-and-go", MUST, "Baseline")
def info_and_go(subject: Subject) -> None:
    """NBD_OPT_INFO and NBD_OPT_GO are there."""
    for option in (Option.INFO, Option.GO):
        with greeted(subject) as link:
            answer = link.option(option, wire.pack_info_request(subject.target.export, (Info.BLOCK_SIZE,)))
            if not answer.granted:
                raise Failure(f"NBD_OPT_{option.name} of export {subject.target.export!r}: {answer.told}")


@rule("handshake/unknown-export", MUST, "NBD_OPT_INFO and NBD_OPT_GO")
def unknown_export(subject: Subject) -> None:
    """An export that NBD_OPT_GO does not know is not known after NBD_OPT_INFO of another one either."""
    data = wire.pack_info_request(NO_SUCH_EXPORT, ())
    with greeted(subject) as link:
        if link.option(Option.GO, data).granted:
            raise NotOffered("the server knows every name")
    with greeted(subject) as link:
        link.option(Option.INFO, wire.pack_info_request(subject.target.export, ()))
        if link.option(Option.GO, data).granted:
            raise Failure(f"NBD_OPT_GO of {NO_SUCH_EXPORT!r} is granted after NBD_OPT_INFO of another export")


@rule("handshake/info-export", MUST, "NBD_OPT_INFO and NBD_OPT_GO; NBD_INFO_EXPORT")
def info_export(subject: Subject) -> None:
    """NBD_OPT_INFO that is granted tells NBD_INFO_EXPORT, whose flags have NBD_FLAG_HAS_FLAGS."""
    with greeted(subject) as link:
        infos = infos_of(link, subject)
        if Info.EXPORT not in infos:
            raise Failure(f"NBD_OPT_INFO was granted with information {sorted(infos)}, without NBD_INFO_EXPORT")
        if len(infos[Info.EXPORT]) != 10:
            raise Failure(f"NBD_INFO_EXPORT is {len(infos[Info.EXPORT])} bytes long, expected 10")
        if not export_flags(infos) & TransmissionFlag.HAS_FLAGS:
            raise Failure(f"transmission flags {export_flags(infos):#x} lack NBD_FLAG_HAS_FLAGS")


@rule("handshake/flags", MUST, "Transmission flags")
def flags(subject: Subject) -> None:
    """NBD_FLAG_SEND_DF needs structured replies, and NBD_FLAG_SEND_FAST_ZERO needs NBD_FLAG_SEND_WRITE_ZEROES."""
    with greeted(subject) as link:
        found = export_flags(infos_of(link, subject))
        if found & TransmissionFlag.SEND_DF:
            raise Failure(f"NBD_FLAG_SEND_DF in {found:#x}, though structured replies were not negotiated")
        if found & TransmissionFlag.SEND_FAST_ZERO and not found & TransmissionFlag.SEND_WRITE_ZEROES:
            raise Failure(f"NBD_FLAG_SEND_FAST_ZERO without NBD_FLAG_SEND_WRITE_ZEROES in {found:#x}")


@rule("handshake/block-sizes", MUST, "Size constraints")
def block_sizes(subject: Subject) -> None:
    """Block sizes are powers of two, but for the largest, and in order."""
    with greeted(subject) as link:
        told = infos_of(link, subject).get(Info.BLOCK_SIZE)
        if told is None:
            raise NotOffered("no NBD_INFO_BLOCK_SIZE though it was asked for")
        if len(told) != 12:
            raise Failure(f"NBD_INFO_BLOCK_SIZE is {len(told)} bytes long after its type, expected 12")
        sizes = wire.BlockSizes(*struct.unpack(">III", told))
        wrong = wire.wrong_block_sizes(sizes)
        if wrong:
            raise Failure(wrong)


@rule("handshake/info-twice", MUST, "NBD_OPT_INFO and NBD_OPT_GO")
def info_twice(subject: Subject) -> None:
    """NBD_OPT_GO right after an NBD_OPT_INFO with the same parameters tells the same."""
    with greeted(subject) as link:
        data = wire.pack_info_request(subject.target.export, (Info.NAME, Info.BLOCK_SIZE))
        first, second = link.option(Option.INFO, data), link.option(Option.GO, data)
        if not first.granted:
            raise NotOffered(f"NBD_OPT_INFO: {first.told}")
        if sorted(first.between) != sorted(second.between) or not second.granted:
            raise Failure("NBD_OPT_GO tells something else than NBD_OPT_INFO did")


@rule("handshake/structured-with-data", SHOULD, "NBD_OPT_STRUCTURED_REPLY")
def structured_with_data(subject: Subject) -> None:
    """NBD_OPT_STRUCTURED_REPLY with data is refused with NBD_REP_ERR_INVALID."""
    with greeted(subject) as link:
        if not link.structured():
            raise NotOffered("no structured replies")
    with greeted(subject) as link:
        refused(link, Option.STRUCTURED_REPLY, b"data", OptionReply.ERR_INVALID, what="it, with 4 bytes")


@rule("handshake/context-too-early", SHOULD, "NBD_OPT_SET_META_CONTEXT")
def context_too_early(subject: Subject) -> None:
    """NBD_OPT_SET_META_CONTEXT before structured replies is refused."""
    with greeted(subject) as link:
        data = wire.pack_meta_query(subject.target.export, (ALLOCATION,))
        kinds = (OptionReply.ERR_INVALID, OptionReply.ERR_EXT_HEADER_REQD, OptionReply.ERR_UNSUP)
        refused(link, Option.SET_META_CONTEXT, data, *kinds, what="NBD_OPT_SET_META_CONTEXT")


@rule("handshake/unknown-context", MUST, "Metadata querying")
def unknown_context(subject: Subject) -> None:
    """A query for a namespace that the server does not know selects nothing, and is no error."""
    with greeted(subject) as link:
        if not link.structured():
            raise NotOffered("no structured replies")
        data = wire.pack_meta_query(subject.target.export, ("x-nobody-knows-this:leaf",))
        answer = link.option(Option.SET_META_CONTEXT, data)
        if answer.final == OptionReply.ERR_UNSUP:
            raise NotOffered("no metadata contexts")
        if not answer.granted or answer.between:
            raise Failure(f"{answer.told} after {len(answer.between)} contexts, expected NBD_REP_ACK after none")


@rule("handshake/context-ids", MUST, "NBD_OPT_SET_META_CONTEXT")
def context_ids(subject: Subject) -> None:
    """Contexts that are selected have the names that were asked for, and different numbers."""
    with greeted(subject) as link:
        if not link.structured():
            raise NotOffered("no structured replies")
        data = wire.pack_meta_query(subject.target.export, (ALLOCATION, "qemu:allocation-depth"))
        answer = link.option(Option.SET_META_CONTEXT, data)
        if not answer.granted or not answer.between:
            raise NotOffered(f"NBD_OPT_SET_META_CONTEXT of {ALLOCATION}: {answer.told}")
        found = contexts_in(answer)
        if set(found) - {ALLOCATION, "qemu:allocation-depth"}:
            raise Failure(f"{ALLOCATION} and qemu:allocation-depth were asked for, and {sorted(found)} are selected")
        if len(set(found.values())) < len(answer.between):
            raise Failure(f"{len(answer.between)} contexts have numbers {sorted(found.values())}")


@rule("handshake/export-name", SHOULD, "Maximum interoperability; NBD_OPT_EXPORT_NAME")
def export_name(subject: Subject) -> None:
    """NBD_OPT_EXPORT_NAME is answered with size, flags and 124 zeroes, which NBD_FLAG_C_NO_ZEROES leaves out."""
    for flags_sent, zeroes in ((ClientFlag.FIXED_NEWSTYLE, 124), (None, 0)):
        with subject.link() as link:
            found = link.greet() if flags_sent is None else link.greet(int(flags_sent))
            if flags_sent is None and not found & ClientFlag.NO_ZEROES:
                return
            as_wanted(link, subject)
            link.send(wire.pack_option(Option.EXPORT_NAME, subject.target.export.encode()))
            try:
                told = link.receive(8, "answer to NBD_OPT_EXPORT_NAME")
            except Closed:
                if has_own_sizes(subject):
                    raise NotOffered("it hangs up, as it may if its block sizes are unusual") from None
                raise
            if int.from_bytes(told, "big") == OPTION_REPLY_MAGIC:
                raise Failure("NBD_OPT_EXPORT_NAME is answered with an option reply")
            told = link.receive(2 + zeroes, "rest of the answer to NBD_OPT_EXPORT_NAME")
            if any(told[2:]):
                raise Failure("the 124 zeroes are none")
            link.request(UNKNOWN_COMMAND, 7)
            with suppress(Closed):
                link.answer()  # which is not zeroes


def has_own_sizes(subject: Subject) -> bool:
    """Whether the block sizes that are told are not those that a client supposes."""
    with greeted(subject) as link:
        told = infos_of(link, subject).get(Info.BLOCK_SIZE, b"")
    return len(told) == 12 and int.from_bytes(told[:4], "big") != 1


def infos_of(link: Link, subject: Subject) -> dict[int, bytes]:
    """What NBD_OPT_INFO tells, by type."""
    answer = link.option(Option.INFO, wire.pack_info_request(subject.target.export, (Info.BLOCK_SIZE,)))
    if answer.final == OptionReply.ERR_UNSUP:
        raise NotOffered("no NBD_OPT_INFO")
    if not answer.granted:
        raise Failure(f"NBD_OPT_INFO of export {subject.target.export!r}: {answer.told}")
    found = {}
    for kind, data in answer.between:
        if kind != OptionReply.INFO or len(data) < 2:
            raise Failure(f"NBD_OPT_INFO is answered with {name_of(kind)} of {len(data)} bytes")
        found[struct.unpack_from(">H", data)[0]] = data[2:]
    return found


def export_flags(infos: dict[int, bytes]) -> int:
    """The transmission flags."""
    told = infos.get(Info.EXPORT, b"")
    return int.from_bytes(told[8:10], "big")
