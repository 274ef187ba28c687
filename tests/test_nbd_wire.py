"""Numbers and messages.  Source: NBD protocol, "Values", "Request message", "Option reply types", "Conventions"."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.errors import PeerError
from impl.nbd import wire
from impl.nbd.constants import (
    Command,
    CommandFlag,
    ErrorValue,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    nbd_errno,
    os_errno,
)

MESSAGES = [  # (bytes on the wire in hexadecimal, the same bytes as we pack them)
    ("4e42444d41474943 49484156454f5054 0003", wire.pack_greeting(HandshakeFlag(3))),
    ("49484156454f5054 00000003 00000000", wire.pack_option(Option.LIST)),
    ("49484156454f5054 00000001 00000002 6162", wire.pack_option(Option.EXPORT_NAME, b"ab")),
    ("0003e889045565a9 00000008 00000001 00000000", wire.pack_option_reply(Option.STRUCTURED_REPLY, OptionReply.ACK)),
    (
        "0003e889045565a9 00000063 80000001 00000002 6e6f",
        wire.pack_option_reply(99, OptionReply.ERR_UNSUP, b"no"),
    ),
    ("00000001 61 0002 0000 0003", wire.pack_info_request("a", (Info.EXPORT, Info.BLOCK_SIZE))),
    ("00000000 00000001 00000005 626173653a", wire.pack_meta_query("", ("base:",))),
    ("00000001 61 6465", wire.pack_server_entry("a", "de")),
    ("00000001 626173653a616c6c6f636174696f6e", wire.pack_meta_context(1, "base:allocation")),
    ("0000 0000000000100000 0103", wire.pack_info_export(1 << 20, 0x103)),
    ("0001 61", wire.pack_info_text(Info.NAME, "a")),
    ("0003 00000001 00001000 02000000", wire.pack_info_block_size(wire.BlockSizes(1, 4096, 32 << 20))),
    (
        "25609513 0001 0001 0000000000000007 0000000000001000 00000200",
        wire.pack_request(Command.WRITE, CommandFlag.FUA, 7, 4096, 512),
    ),
    ("00000200 00000003 00001000 00000000", wire.pack_descriptors([(512, 3), (4096, 0)])),
]

MALFORMED = [  # (why, what reads it, bytes)
    ("info request without a name length", wire.unpack_info_request, b"\0\0\0"),
    ("name longer than the payload", wire.unpack_info_request, bytes.fromhex("00000005 61 0000")),
    ("name over the count field", wire.unpack_info_request, bytes.fromhex("00000001 61 00")),
    ("count that promises too much", wire.unpack_info_request, bytes.fromhex("00000000 0002 0000")),
    ("count that promises too little", wire.unpack_info_request, bytes.fromhex("00000000 0000 0000")),
    ("query that overruns the payload", wire.unpack_meta_query, bytes.fromhex("00000000 00000001 00000006 626173653a")),
    ("query count that promises four billion", wire.unpack_meta_query, bytes.fromhex("00000000 ffffffff 00000000")),
    ("byte behind the last query", wire.unpack_meta_query, bytes.fromhex("00000000 00000000 00")),
    ("server entry with its name cut", wire.unpack_server_entry, bytes.fromhex("00000002 61")),
    ("name that is not UTF-8", wire.unpack_server_entry, bytes.fromhex("00000001 ff")),
    ("name with a NUL", wire.unpack_server_entry, bytes.fromhex("00000001 00")),
    ("context without an id", wire.unpack_meta_context, b"\0\0\0"),
    ("info without a kind", wire.unpack_info, b"\0"),
    ("export info that is short", wire.unpack_info_export, bytes(9)),
    ("block sizes that are long", wire.unpack_info_block_size, bytes(13)),
    ("minimum that is no power of two", wire.unpack_info_block_size, wire.INFO_BLOCK_SIZE.pack(3, 4096, 1 << 20)),
    ("minimum above 64 KiB", wire.unpack_info_block_size, wire.INFO_BLOCK_SIZE.pack(1 << 17, 1 << 17, 1 << 20)),
    ("preferred below 512", wire.unpack_info_block_size, wire.INFO_BLOCK_SIZE.pack(1, 256, 1 << 20)),
    ("preferred below the minimum", wire.unpack_info_block_size, wire.INFO_BLOCK_SIZE.pack(4096, 512, 1 << 20)),
    ("maximum below the preferred", wire.unpack_info_block_size, wire.INFO_BLOCK_SIZE.pack(1, 4096, 512)),
]

names = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
uint16 = st.integers(0, 0xFFFF)


@pytest.mark.parametrize(("expected", "packed"), MESSAGES)
def test_messages_have_the_bytes_of_the_standard(expected, packed):
    assert packed == bytes.fromhex(expected)


@pytest.mark.parametrize(("why", "unpack", "data"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_a_malformed_payload_is_the_peers_error(why, unpack, data):
    with pytest.raises(PeerError):
        unpack(data)


@settings(deadline=None)
@given(names, st.lists(uint16, max_size=5))
def test_an_info_request_survives_the_wire(name, infos):
    assert wire.unpack_info_request(wire.pack_info_request(name, infos)) == (name, tuple(infos))


@settings(deadline=None)
@given(names, st.lists(names, max_size=5))
def test_a_metadata_query_survives_the_wire(export, queries):
    assert wire.unpack_meta_query(wire.pack_meta_query(export, queries)) == (export, tuple(queries))


@settings(deadline=None)
@given(names, names)
def test_a_server_entry_survives_the_wire(name, description):
    assert wire.unpack_server_entry(wire.pack_server_entry(name, description)) == (name, description)


def test_a_string_has_at_most_4096_bytes():
    assert wire.text(b"a" * 4096) == "a" * 4096
    with pytest.raises(PeerError, match="4097"):
        wire.text(b"a" * 4097)


def test_a_message_for_humans_is_cut_at_a_character():
    assert wire.shorten("ok\0") == b"ok"
    assert wire.shorten("a" + "ä" * 3000) == ("a" + "ä" * 2047).encode()


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (0, 0),
        (errno.EPERM, 1),
        (errno.EACCES, 1),
        (errno.EROFS, 1),
        (errno.EIO, 5),
        (errno.ENOMEM, 12),
        (errno.EINVAL, 22),
        (errno.ENOSPC, 28),
        (errno.EDQUOT, 28),
        (errno.EFBIG, 28),
        (errno.EOVERFLOW, 75),
        (errno.EOPNOTSUPP, 95),
        (errno.ESHUTDOWN, 108),
        (errno.EBADF, 5),
    ],
)
def test_an_errno_travels_as_one_of_the_eight_error_values(number, value):
    assert nbd_errno(number) == value


def test_every_error_value_comes_back_as_itself_and_an_unknown_one_as_einval():
    assert [nbd_errno(os_errno(value)) for value in ErrorValue] == list(ErrorValue)
    assert os_errno(9999) == errno.EINVAL
