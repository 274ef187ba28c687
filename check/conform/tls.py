"""Rules of TLS. Whoever the server is does not matter here: its certificate is not looked at."""

from __future__ import annotations

import ssl

from check.conform.handshake import UNKNOWN_OPTION
from check.conform.link import Link, name_of
from check.conform.rule import Failure, Need, NotOffered, rule
from check.conform.subject import Subject
from check.conform.talk import greeted, read, still_in_step, still_served
from impl.nbd import wire
from impl.nbd.constants import Command, Info, Option, OptionReply

MUST = Need.MUST
NOT_TLS = (OptionReply.ERR_POLICY, OptionReply.ERR_UNSUP, OptionReply.ERR_PLATFORM, OptionReply.ERR_INVALID)
OPTIONS: dict[int, bytes] = {
    Option.LIST: b"",
    Option.STRUCTURED_REPLY: b"",
    Option.INFO: wire.pack_info_request("", (Info.BLOCK_SIZE,)),
    Option.GO: wire.pack_info_request("", ()),
}


@rule("tls/not-there", MUST, "NOTLS mode")
def not_there(subject: Subject) -> None:
    """Without TLS, NBD_OPT_STARTTLS is an error, and no option is answered with NBD_REP_ERR_TLS_REQD."""
    with greeted(subject, in_the_clear=True) as link:
        answer = link.option(Option.STARTTLS)
        if answer.granted:
            raise NotOffered("the server has TLS")
        if answer.final not in NOT_TLS:
            raise Failure(f"NBD_OPT_STARTTLS: {answer.told}")
        still_in_step(link)
        for option, data in OPTIONS.items():
            if option != Option.GO and link.option(option, data).final == OptionReply.ERR_TLS_REQD:
                raise Failure(f"option {option}: NBD_REP_ERR_TLS_REQD, though there is no TLS")


def secured(link: Link, newest: ssl.TLSVersion | None = None) -> None:
    """TLS from here on; NotOffered if the server has none. One that does not even say so breaks `tls/not-there`."""
    try:
        answer = link.option(Option.STARTTLS)
    except Failure as failure:
        raise NotOffered(f"no TLS: {failure}") from None
    if not answer.granted:
        raise NotOffered(f"no TLS: {answer.told}")
    link.shake_tls_hands(newest)


@rule("tls/upgrade", MUST, "NBD_OPT_STARTTLS; TLS versions")
def upgrade(subject: Subject) -> None:
    """After NBD_OPT_STARTTLS, options are understood through TLS 1.2 or later."""
    with greeted(subject, in_the_clear=True) as link:
        secured(link)
        still_in_step(link)


@rule("tls/version", MUST, "TLS versions")
def version(subject: Subject) -> None:
    """TLS 1.2 is supported."""
    with greeted(subject, in_the_clear=True) as link:
        secured(link, ssl.TLSVersion.TLSv1_2)
        link.option(Option.STRUCTURED_REPLY)


@rule("tls/twice", MUST, "FORCEDTLS mode; SELECTIVETLS mode")
def twice(subject: Subject) -> None:
    """A second NBD_OPT_STARTTLS is NBD_REP_ERR_INVALID."""
    with greeted(subject, in_the_clear=True) as link:
        secured(link)
        answer = link.option(Option.STARTTLS)
        if answer.final != OptionReply.ERR_INVALID:
            raise Failure(f"a second NBD_OPT_STARTTLS: {answer.told}, expected NBD_REP_ERR_INVALID")
        still_in_step(link)


@rule("tls/forgets", MUST, "NBD_OPT_STARTTLS")
def forgets(subject: Subject) -> None:
    """What was negotiated before TLS is forgotten: structured replies have to be asked for again."""
    with greeted(subject, in_the_clear=True) as link:
        before = link.option(Option.STRUCTURED_REPLY)
        secured(link)
        if not before.granted:
            raise NotOffered(f"no structured replies in the clear: {before.told}")
        link.enter(subject.target.export)
        link.request(Command.READ, 7, 0, link.unit)
        link.answer()  # only a simple reply was negotiated


@rule("tls/injection", MUST, "FORCEDTLS mode; SELECTIVETLS mode")
def injection(subject: Subject) -> None:
    """An option in the clear behind NBD_OPT_STARTTLS is not taken for one that came through TLS."""
    with greeted(subject, in_the_clear=True) as link:
        link.send(wire.pack_option(Option.STARTTLS) + wire.pack_option(Option.LIST))
        try:
            answer = link.answer_to(Option.STARTTLS)
            if not answer.granted:
                raise NotOffered(f"no TLS: {answer.told}")
            link.shake_tls_hands()
        except Failure:
            return  # what was behind is no beginning of TLS: the server hangs up
        if link.option(Option.STRUCTURED_REPLY).between:
            raise Failure("an option that was sent in the clear is answered through TLS")


@rule("tls/required", MUST, "FORCEDTLS mode")
def required(subject: Subject) -> None:
    """Where TLS is required, options in the clear are NBD_REP_ERR_TLS_REQD; NBD_OPT_EXPORT_NAME is hung up on."""
    with greeted(subject, in_the_clear=True) as link:
        if link.option(Option.LIST).final != OptionReply.ERR_TLS_REQD:
            raise NotOffered("TLS is not required for everything")
        for option, data in [*OPTIONS.items(), (UNKNOWN_OPTION, b"")]:
            answer = link.option(option, data)
            if answer.final != OptionReply.ERR_TLS_REQD:
                raise Failure(f"option {int(option)}: {answer.told}, expected {name_of(OptionReply.ERR_TLS_REQD)}")
        link.send(wire.pack_option(Option.EXPORT_NAME, subject.target.export.encode()))
        link.ends("NBD_OPT_EXPORT_NAME in the clear")


@rule("tls/rejected-write", Need.SHOULD, "Command flags; TLS support")
def rejected_write(subject: Subject) -> None:
    """The payload of a write that is refused is skipped through TLS, too, and the connection lives."""
    with greeted(subject, in_the_clear=True) as link:
        secured(link)
        link.enter(subject.target.export)
        link.write(7, 0, bytes(link.sector), flags=1 << 15)
        if not link.error_of(7):
            raise Failure("a write with flag 0x8000 succeeds")
        still_served(link)


@rule("tls/disconnect", MUST, "NBD_CMD_DISC")
def disconnect(subject: Subject) -> None:
    """After NBD_CMD_DISC, TLS is shut down before the connection is closed."""
    with greeted(subject, in_the_clear=True) as link:
        secured(link)
        link.enter(subject.target.export)
        read(link, 7, 0, link.unit)
        link.request(Command.DISC, 8)
        link.ends("NBD_CMD_DISC", with_goodbye=True)
