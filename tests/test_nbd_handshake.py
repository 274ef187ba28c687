"""The handshake, from both sides.

Source: NBD protocol, "Newstyle negotiation", "Fixed newstyle negotiation", "Option types", "Metadata querying".

Fuzzing holds one invariant: whatever bytes come, however they are split, `receive` raises nothing, and keeps no more
than one option beside what it was given last.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.nbd import wire
from impl.nbd.client_handshake import MAX_ANSWERS_BYTES, ClientHandshake, Goal
from impl.nbd.constants import (
    MAX_OPTION_COUNT,
    MAX_OPTION_DATA_BYTES,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)
from impl.nbd.server_handshake import Agreement, ExportInfo, Phase, ServerHandshake

T = TransmissionFlag
FLAGS = T.HAS_FLAGS | T.SEND_FLUSH | T.SEND_FUA
DISK = ExportInfo("disk", 1 << 20, "a disk", FLAGS)
PLAIN = ExportInfo("plain", 512, "", T.HAS_FLAGS | T.READ_ONLY, block_min=512)
EXPORTS = {"disk": DISK, "plain": PLAIN}

GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
FIXED = bytes.fromhex("00000003")  # FIXED_NEWSTYLE | NO_ZEROES
FIXED_WITH_ZEROES = bytes.fromhex("00000001")  # FIXED_NEWSTYLE

option = wire.pack_option
reply = wire.pack_option_reply
info_request = wire.pack_info_request
meta_query = wire.pack_meta_query

STRUCTURED = option(Option.STRUCTURED_REPLY)
LIST_ANSWER = [
    (OptionReply.SERVER, wire.pack_server_entry("disk", "a disk")),
    (OptionReply.SERVER, wire.pack_server_entry("plain", "")),
    (OptionReply.ACK, b""),
]
DISK_INFO = (OptionReply.INFO, wire.pack_info_export(1 << 20, FLAGS))
ACK = (OptionReply.ACK, b"")
INVALID, UNSUP, UNKNOWN = OptionReply.ERR_INVALID, OptionReply.ERR_UNSUP, OptionReply.ERR_UNKNOWN
TOO_BIG = OptionReply.ERR_TOO_BIG
BASE, DEPTH, STATE = "base:allocation", "qemu:allocation-depth", "cowproof:state"
ID = {BASE: 1, DEPTH: 2, STATE: 3}
LIST_META, SET_META = Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT


def u32(number):
    return number.to_bytes(4, "big")


def listed(*names):
    return [*[(OptionReply.META_CONTEXT, wire.pack_meta_context(0, name)) for name in names], ACK]


def selected(*names):
    return [*[(OptionReply.META_CONTEXT, wire.pack_meta_context(ID[name], name)) for name in names], ACK]


# (claim, option, its data, the replies). Each runs after STRUCTURED_REPLY; an error's text is free, so an
# error stands as its reply type alone.
OPTIONS = [
    ("LIST tells every export and its description", Option.LIST, b"", LIST_ANSWER),
    ("LIST with data is invalid", Option.LIST, b"x", INVALID),
    ("LIST with more data than we keep is invalid", Option.LIST, bytes(1 << 20), INVALID),
    ("PEEK_EXPORT is unsupported", Option.PEEK_EXPORT, b"", UNSUP),
    ("PEEK_EXPORT with data is unsupported", Option.PEEK_EXPORT, b"disk", UNSUP),
    ("EXTENDED_HEADERS is granted", Option.EXTENDED_HEADERS, b"", [ACK]),
    ("EXTENDED_HEADERS with data is invalid", Option.EXTENDED_HEADERS, b"x", INVALID),
    ("EXTENDED_HEADERS with much data is invalid", Option.EXTENDED_HEADERS, bytes(1 << 20), INVALID),
    ("an unknown option is unsupported", 12345, b"", UNSUP),
    ("an unknown option with data is unsupported", 0xFFFFFFFF, b"data", UNSUP),
    ("an unknown option with much data is unsupported", 4711, bytes(1 << 20), UNSUP),
    ("option 0 is unsupported", 0, b"", UNSUP),
    ("STARTTLS is against policy", Option.STARTTLS, b"", OptionReply.ERR_POLICY),
    ("STARTTLS with data is invalid", Option.STARTTLS, b"x", INVALID),
    ("STRUCTURED_REPLY may be repeated", Option.STRUCTURED_REPLY, b"", [ACK]),
    ("STRUCTURED_REPLY with data is invalid", Option.STRUCTURED_REPLY, b"x", INVALID),
    ("INFO tells size and flags", Option.INFO, info_request("disk"), "export"),
    ("INFO of no name tells of the default export", Option.INFO, info_request(""), "export"),
    ("INFO ignores what it does not know", Option.INFO, info_request("disk", (77, 0xFFFF)), "export"),
    ("INFO repeats nothing", Option.INFO, info_request("disk", (Info.EXPORT, Info.EXPORT)), "export"),
    ("INFO of an unknown export is unknown", Option.INFO, info_request("disc"), UNKNOWN),
    ("INFO without data is invalid", Option.INFO, b"", INVALID),
    ("INFO shorter than a name length is invalid", Option.INFO, b"\0\0", INVALID),
    ("INFO whose name overruns it is invalid", Option.INFO, u32(99) + b"disk\0\0", INVALID),
    ("INFO whose name leaves no room for the count is invalid", Option.INFO, u32(5) + b"disk\0\0", INVALID),
    ("INFO with a name of four billion bytes is invalid", Option.INFO, u32(0xFFFFFFFF) + b"disk\0\0", INVALID),
    ("INFO with fewer requests than it says is invalid", Option.INFO, u32(4) + b"disk\0\2\0\0", INVALID),
    ("INFO with more requests than it says is invalid", Option.INFO, u32(4) + b"disk\0\1\0\0\0\0", INVALID),
    ("INFO with half a request is invalid", Option.INFO, u32(4) + b"disk\0\1\0", INVALID),
    ("INFO of a name with NUL is invalid", Option.INFO, u32(4) + b"di\0k\0\0", INVALID),
    ("INFO of a name that is not UTF-8 is invalid", Option.INFO, u32(2) + b"\xc3\x28\0\0", INVALID),
    ("INFO of a name of 4096 bytes is unknown", Option.INFO, u32(4096) + b"a" * 4096 + b"\0\0", UNKNOWN),
    ("INFO of a name of 4097 bytes is invalid", Option.INFO, u32(4097) + b"a" * 4097 + b"\0\0", INVALID),
    ("INFO of 64 KiB is read", Option.INFO, bytes(MAX_OPTION_DATA_BYTES), INVALID),
    ("INFO of more is too big", Option.INFO, bytes(MAX_OPTION_DATA_BYTES + 1), TOO_BIG),
    ("GO of an unknown export is unknown", Option.GO, info_request("disc"), UNKNOWN),
    ("GO without data is invalid", Option.GO, b"", INVALID),
    ("GO whose name overruns it is invalid", Option.GO, u32(99) + b"disk\0\0", INVALID),
    ("GO of more than we keep is too big", Option.GO, bytes(1 << 20), TOO_BIG),
    ("LIST_META of no query lists all", LIST_META, meta_query("disk", ()), listed(BASE, DEPTH, STATE)),
    ("LIST_META of no name lists the default's", LIST_META, meta_query("", ()), listed(BASE, DEPTH, STATE)),
    ("LIST_META knows the wildcard", LIST_META, meta_query("disk", ("base:",)), listed(BASE)),
    (
        "LIST_META knows it of each namespace",
        LIST_META,
        meta_query("disk", ("qemu:", "cowproof:")),
        listed(DEPTH, STATE),
    ),
    ("LIST_META finds by name", LIST_META, meta_query("disk", (STATE, BASE)), listed(BASE, STATE)),
    ("LIST_META lists once", LIST_META, meta_query("disk", ("base:", BASE)), listed(BASE)),
    ("LIST_META ignores other namespaces", LIST_META, meta_query("disk", ("qemu:x", "x-y:")), [ACK]),
    ("LIST_META ignores unknown leaves", LIST_META, meta_query("disk", ("base:alloc",)), [ACK]),
    ("LIST_META ignores a query without a colon", LIST_META, meta_query("disk", ("base",)), [ACK]),
    ("LIST_META of an unknown export is unknown", LIST_META, meta_query("disc", ()), UNKNOWN),
    ("LIST_META without data is invalid", LIST_META, b"", INVALID),
    ("LIST_META with the name cut is invalid", LIST_META, u32(9) + b"disk", INVALID),
    ("LIST_META without a count is invalid", LIST_META, u32(4) + b"disk", INVALID),
    ("LIST_META whose query overruns it is invalid", LIST_META, u32(0) + u32(1) + u32(6) + b"base:", INVALID),
    ("LIST_META with a query too few is invalid", LIST_META, u32(0) + u32(2) + u32(5) + b"base:", INVALID),
    ("LIST_META with a trailing byte is invalid", LIST_META, meta_query("disk", ()) + b"x", INVALID),
    ("LIST_META of bad UTF-8 is invalid", LIST_META, u32(0) + u32(1) + u32(1) + b"\xff", INVALID),
    ("LIST_META of more than we keep is too big", LIST_META, bytes(1 << 20), TOO_BIG),
    ("SET_META selects by name", SET_META, meta_query("disk", (BASE,)), selected(BASE)),
    ("SET_META selects several", SET_META, meta_query("disk", (STATE, DEPTH)), selected(DEPTH, STATE)),
    ("SET_META selects once", SET_META, meta_query("disk", (BASE,) * 3), selected(BASE)),
    ("SET_META of no query selects nothing", SET_META, meta_query("disk", ()), [ACK]),
    ("SET_META ignores the wildcard", SET_META, meta_query("disk", ("base:",)), [ACK]),
    ("SET_META ignores other namespaces", SET_META, meta_query("disk", ("qemu:dirty-bitmap:a", "x:")), [ACK]),
    ("SET_META of an unknown export is unknown", SET_META, meta_query("disc", ("base:allocation",)), UNKNOWN),
    ("SET_META with a trailing byte is invalid", SET_META, meta_query("disk", ()) + b"x", INVALID),
    ("SET_META of more than we keep is too big", SET_META, bytes(1 << 20), TOO_BIG),
]
CLAIMS = [case[0] for case in OPTIONS]


def replies_of(data):
    """Option replies as (option, reply type, data)."""
    found = []
    while data:
        magic, number, kind, length = wire.OPTION_REPLY.unpack_from(data)
        assert magic == 0x0003E889045565A9
        found.append((number, kind, data[20 : 20 + length]))
        assert len(found[-1][2]) == length
        data = data[20 + length :]
    return found


def server(*received, exports=EXPORTS, default="disk"):
    """A server that has received this, and whose greeting has been taken."""
    handshake = ServerHandshake(exports, default)
    assert handshake.data_to_send() == GREETING
    for data in received:
        handshake.receive(data)
    return handshake


def after_structured_reply(*received):
    handshake = server(FIXED + STRUCTURED)
    assert replies_of(handshake.data_to_send()) == [(Option.STRUCTURED_REPLY, *ACK)]
    for data in received:
        handshake.receive(data)
    return handshake


def check_answer(sent, number, expected):
    found = replies_of(sent)
    assert {number} == {option_number for option_number, _, _ in found}
    if expected == "export":
        expected = [(OptionReply.INFO, wire.pack_info_export(1 << 20, FLAGS | T.SEND_DF)), ACK]
    if isinstance(expected, OptionReply):
        assert [kind for _, kind, _ in found] == [expected]
        assert wire.text(found[0][2])  # an error says why
    else:
        assert [(kind, data) for _, kind, data in found] == expected


@pytest.mark.parametrize(("claim", "number", "data", "expected"), OPTIONS, ids=CLAIMS)
def test_an_option_gets_its_replies_and_the_next_one_is_in_sync(claim, number, data, expected):
    handshake = after_structured_reply(option(number, data) + option(Option.ABORT))
    sent = handshake.data_to_send()
    farewell = reply(Option.ABORT, OptionReply.ACK)
    assert sent.endswith(farewell)
    check_answer(sent[: -len(farewell)], number, expected)
    assert handshake.phase is Phase.CLOSED


@pytest.mark.parametrize(("claim", "number", "data", "expected"), OPTIONS, ids=CLAIMS)
def test_the_same_when_the_bytes_come_one_by_one(claim, number, data, expected):
    whole = option(number, data[:5000]) if len(data) <= 5000 else option(number, data)
    pieces = [whole[i : i + 1] for i in range(5000)] + [whole[5000:]]
    handshake = after_structured_reply(*pieces)
    check_answer(handshake.data_to_send(), number, expected)
    assert handshake.phase is Phase.OPTIONS


def test_go_answers_like_info_and_enters_transmission_without_zeroes():
    for infos in ((), (Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)):
        asked = info_request("disk", infos)
        told = after_structured_reply(option(Option.INFO, asked)).data_to_send()
        handshake = after_structured_reply(option(Option.GO, asked))
        went = handshake.data_to_send()
        assert [entry[1:] for entry in replies_of(told)] == [entry[1:] for entry in replies_of(went)]
        assert handshake.phase is Phase.TRANSMISSION
        assert handshake.agreement == Agreement(DISK, FLAGS | T.SEND_DF, True, ())


def test_what_is_asked_for_is_told():
    handshake = server(FIXED, option(Option.INFO, info_request("", (Info.BLOCK_SIZE, Info.NAME, Info.DESCRIPTION))))
    assert [entry[1:] for entry in replies_of(handshake.data_to_send())] == [
        DISK_INFO,
        (OptionReply.INFO, wire.pack_info_text(Info.NAME, "disk")),
        (OptionReply.INFO, wire.pack_info_text(Info.DESCRIPTION, "a disk")),
        (OptionReply.INFO, wire.pack_info_block_size(wire.BlockSizes(1, 4096, 32 << 20))),
        ACK,
    ]


def test_a_missing_description_is_not_told():
    handshake = server(FIXED, option(Option.INFO, info_request("plain", (Info.DESCRIPTION,))))
    kinds = [data[:2] for _, kind, data in replies_of(handshake.data_to_send()) if kind == OptionReply.INFO]
    assert Info.DESCRIPTION not in [int.from_bytes(kind, "big") for kind in kinds]


def test_unusual_block_sizes_are_told_unasked():
    handshake = server(FIXED, option(Option.INFO, info_request("plain")))
    sizes = wire.pack_info_block_size(wire.BlockSizes(512, 4096, 32 << 20))
    assert (Option.INFO, OptionReply.INFO, sizes) in replies_of(handshake.data_to_send())


def test_df_is_advertised_only_with_structured_replies():
    assert server(FIXED, option(Option.GO, info_request("disk"))).agreement == Agreement(DISK, FLAGS, False)


@pytest.mark.parametrize(
    ("flags", "zeroes"), [(FIXED, 0), (FIXED_WITH_ZEROES, 124), (bytes(4), 124), (bytes.fromhex("00000002"), 0)]
)
def test_export_name_answers_with_10_bytes_or_134(flags, zeroes):
    handshake = server(flags, option(Option.EXPORT_NAME, b"plain") + b"request")
    assert handshake.data_to_send() == bytes.fromhex("0000000000000200 0003") + bytes(zeroes)
    assert handshake.phase is Phase.TRANSMISSION
    assert handshake.agreement == Agreement(PLAIN, PLAIN.flags, False)
    assert handshake.leftover == b"request"


@pytest.mark.parametrize("name", [b"disc", b"di\0k", b"\xff", b"a" * 4096, b"a" * 4097, b"a" * 100_000])
def test_export_name_of_an_unknown_export_closes_without_a_word(name):
    handshake = server(FIXED, option(Option.EXPORT_NAME, name))
    assert (handshake.data_to_send(), handshake.phase) == (b"", Phase.CLOSED)
    assert handshake.error


def test_the_empty_name_is_unknown_where_there_is_no_default():
    handshake = server(FIXED, option(Option.GO, info_request("")), default="nothing")
    check_answer(handshake.data_to_send(), Option.GO, UNKNOWN)


@pytest.mark.parametrize("data", [b"", b"ignored", bytes(1 << 20)])
def test_abort_is_acknowledged_and_closes(data):
    handshake = server(FIXED, option(Option.ABORT, data) + option(Option.LIST))
    assert replies_of(handshake.data_to_send()) == [(Option.ABORT, *ACK)]
    assert handshake.phase is Phase.CLOSED


@pytest.mark.parametrize("flags", [4, 7, 1 << 31, 0xFFFFFFFF])
def test_an_unknown_client_flag_closes(flags):
    handshake = server(u32(flags) + option(Option.LIST))
    assert (handshake.data_to_send(), handshake.phase) == (b"", Phase.CLOSED)


def test_a_wrong_option_magic_closes():
    handshake = server(FIXED, b"IHAVEOPS" + option(Option.LIST)[8:])
    assert (handshake.data_to_send(), handshake.phase) == (b"", Phase.CLOSED)


@pytest.mark.parametrize("number", [number for number in Option if number != Option.EXPORT_NAME])
def test_without_fixed_newstyle_only_export_name_is_served(number):
    handshake = server(bytes(4), option(number))
    assert (handshake.data_to_send(), handshake.phase) == (b"", Phase.CLOSED)


@pytest.mark.parametrize("number", [LIST_META, SET_META])
def test_metadata_contexts_need_structured_replies(number):
    handshake = server(FIXED, option(number, meta_query("disk", ("base:allocation",))))
    check_answer(handshake.data_to_send(), number, INVALID)


SET_DISK = option(SET_META, meta_query("disk", ("base:allocation",)))
CONTEXTS = [  # (claim, options after STRUCTURED_REPLY, contexts in force)
    ("nothing was set", b"", ()),
    ("set for this export", SET_DISK, (1,)),
    ("set for the default's other name", option(SET_META, meta_query("", ("base:allocation",))), (1,)),
    ("set for another export", option(SET_META, meta_query("plain", ("base:allocation",))), ()),
    ("replaced by none", SET_DISK + option(SET_META, meta_query("disk", ())), ()),
    ("replaced by a wildcard, which selects none", SET_DISK + option(SET_META, meta_query("disk", ("base:",))), ()),
    ("replaced by a failure", SET_DISK + option(SET_META, b"x"), ()),
    ("replaced by an unknown export", SET_DISK + option(SET_META, meta_query("disc", ("base:allocation",))), ()),
    ("replaced by one too big", SET_DISK + option(SET_META, bytes(1 << 20)), ()),
    ("kept over a LIST_META", SET_DISK + option(LIST_META, meta_query("plain", ())), (1,)),
    ("kept over a failed GO", SET_DISK + option(Option.GO, info_request("disc")), (1,)),
]


@pytest.mark.parametrize(("claim", "options", "contexts"), CONTEXTS, ids=[case[0] for case in CONTEXTS])
def test_the_contexts_in_force_are_those_set_last_for_the_export_chosen(claim, options, contexts):
    for choice in (option(Option.GO, info_request("disk")), option(Option.EXPORT_NAME, b"disk")):
        handshake = after_structured_reply(options + choice)
        assert handshake.agreement is not None
        assert handshake.agreement.contexts == contexts


def test_what_comes_behind_go_is_left_over():
    handshake = after_structured_reply(option(Option.GO, info_request("disk")) + b"a request", b" and more")
    assert handshake.leftover == b"a request and more"


def test_options_are_counted():
    handshake = server(FIXED)
    for _ in range(MAX_OPTION_COUNT):
        handshake.receive(option(99))
        check_answer(handshake.data_to_send(), 99, UNSUP)
    handshake.receive(option(99))
    assert (handshake.data_to_send(), handshake.phase) == (b"", Phase.CLOSED)


def test_a_client_that_does_not_read_its_replies_is_dropped():
    many = {f"export-{i}": ExportInfo(f"export-{i}", 0, "x" * 4000, T.HAS_FLAGS) for i in range(100)}
    handshake = server(FIXED, option(Option.LIST) * 1000, exports=many, default="export-0")
    assert handshake.phase is Phase.CLOSED
    assert len(handshake.data_to_send()) < 2 << 20


def test_an_option_of_four_billion_bytes_is_skipped_without_keeping_it():
    handshake = server(FIXED, option(Option.LIST)[:12] + u32(0xFFFFFFFF))
    chunk = bytes(1 << 24)
    for _ in range(255):
        handshake.receive(chunk)
        assert kept(handshake) == 0
    handshake.receive(chunk[:-1] + option(Option.ABORT))
    assert [kind for _, kind, _ in replies_of(handshake.data_to_send())] == [INVALID, OptionReply.ACK]


# Both sides.


def run(client, handshake, step):
    """Carry bytes both ways, `step` at a time, until neither has any."""
    moved = True
    while moved:
        moved = False
        for source, sink in ((handshake, client), (client, handshake)):
            data = source.data_to_send()
            for at in range(0, len(data), step):
                sink.receive(data[at : at + step])
                moved = True


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ["", "disk", "plain"])
@pytest.mark.parametrize(("extended", "structured"), [(False, False), (False, True), (True, False), (True, True)])
def test_client_and_server_come_to_the_same_agreement(step, name, extended, structured):
    handshake = ServerHandshake(EXPORTS, "disk")
    client = ClientHandshake(name, extended=extended, structured=structured)
    run(client, handshake, step)
    assert client.error is None
    assert client.agreement is not None
    assert client.agreement == handshake.agreement
    assert client.agreement.extended == extended
    assert client.agreement.structured == (structured or extended)
    assert client.agreement.contexts == ((1,) if structured or extended else ())


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_by_export_name_they_agree_on_size_and_flags(step):
    handshake = ServerHandshake(EXPORTS, "disk")
    client = ClientHandshake("plain", export_name_only=True)
    run(client, handshake, step)
    assert client.agreement is not None
    assert (client.agreement.export.size, client.agreement.flags) == (512, PLAIN.flags)


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_client_lists_exports(step):
    client, handshake = ClientHandshake(goal=Goal.LIST), ServerHandshake(EXPORTS, "disk")
    run(client, handshake, step)
    assert client.exports == [("disk", "a disk"), ("plain", "")]
    assert (client.phase, client.error, handshake.phase) == (Phase.CLOSED, None, Phase.CLOSED)


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_client_asks_about_an_export_without_choosing_it(step):
    client, handshake = ClientHandshake("", Goal.INFO, structured=False), ServerHandshake(EXPORTS, "disk")
    run(client, handshake, step)
    assert client.export == DISK
    assert (client.phase, client.error, handshake.agreement) == (Phase.CLOSED, None, None)


LISTED = [((), [BASE, DEPTH, STATE]), (("base:",), [BASE]), ((DEPTH,), [DEPTH])]


@pytest.mark.parametrize(("queries", "names"), LISTED)
def test_a_client_lists_contexts(queries, names):
    client = ClientHandshake("disk", Goal.LIST_META_CONTEXT, contexts=queries)
    run(client, ServerHandshake(EXPORTS, "disk"), 3)
    assert client.contexts == [(0, name) for name in names]


@pytest.mark.parametrize("goal", [Goal.GO, Goal.INFO, Goal.LIST_META_CONTEXT])
def test_a_refused_client_leaves_politely_and_says_why(goal):
    client, handshake = ClientHandshake("disc", goal), ServerHandshake(EXPORTS, "disk")
    run(client, handshake, 5)
    assert (client.phase, client.refusal) == (Phase.CLOSED, OptionReply.ERR_UNKNOWN)
    assert "disc" in (client.error or "")
    assert (handshake.phase, handshake.error) == (Phase.CLOSED, None), "to leave like this is in order"


def test_a_client_falls_back_to_export_name():
    client = ClientHandshake("disk")
    client.receive(GREETING)
    assert client.data_to_send() == FIXED + STRUCTURED
    client.receive(reply(Option.STRUCTURED_REPLY, UNSUP))
    assert wire.OPTION.unpack_from(client.data_to_send())[1] == Option.GO
    client.receive(reply(Option.GO, UNSUP, b"too new"))
    assert client.data_to_send() == option(Option.EXPORT_NAME, b"disk")
    client.receive(bytes.fromhex("0000000000100000 000d") + b"rest")
    assert client.agreement == Agreement(ExportInfo("disk", 1 << 20, "", FLAGS), FLAGS, False)
    assert client.leftover == b"rest"


def test_a_client_of_a_newstyle_server_uses_export_name_and_swallows_the_zeroes():
    client = ClientHandshake("disk")
    client.receive(GREETING[:16] + bytes(2))
    assert client.data_to_send() == bytes(4) + option(Option.EXPORT_NAME, b"disk")
    client.receive(bytes.fromhex("0000000000100000 000d") + bytes(124) + b"rest")
    assert (client.phase, client.leftover) == (Phase.TRANSMISSION, b"rest")


# UNSUP is none: there is another way to choose an export.
REFUSALS = [
    OptionReply.ERR_POLICY,
    OptionReply.ERR_INVALID,
    OptionReply.ERR_PLATFORM,
    OptionReply.ERR_TLS_REQD,
    OptionReply.ERR_UNKNOWN,
    OptionReply.ERR_SHUTDOWN,
    OptionReply.ERR_BLOCK_SIZE_REQD,
    OptionReply.ERR_TOO_BIG,
    OptionReply.ERR_EXT_HEADER_REQD,
]


@pytest.mark.parametrize(
    "number", [OptionReply.ERR_SHUTDOWN, OptionReply.ERR_TLS_REQD], ids=["shutdown", "tls required"]
)
def test_a_client_takes_no_for_an_answer(number):
    client = ClientHandshake("disk")
    client.receive(GREETING + reply(Option.STRUCTURED_REPLY, number))
    assert client.data_to_send().endswith(option(Option.ABORT))
    assert (client.phase, client.refusal) == (Phase.CLOSED, number)


@pytest.mark.parametrize("number", REFUSALS, ids=[number.name for number in REFUSALS])
def test_a_client_that_is_refused_its_export_keeps_the_reply_whichever_it_is(number):
    client = ClientHandshake("disk", structured=False)
    client.receive(GREETING)
    client.data_to_send()
    client.receive(reply(Option.GO, number, b"because"))
    assert client.data_to_send() == option(Option.ABORT)
    assert (client.phase, client.refusal) == (Phase.CLOSED, number)
    assert f"with {number.name}: because" in (client.error or "")


GO = (Option.GO, info_request("disk", (Info.EXPORT, Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)))
EXPORT_INFO = reply(Option.GO, OptionReply.INFO, wire.pack_info_export(1, 1))
BROKEN = [  # (claim, what a server sends to a client that declined structured replies)
    ("no greeting of NBD", b"HTTP/1.1 400 Bad Request\r\n"),
    ("oldstyle", bytes.fromhex("4e42444d41474943 0000420281861253 0000") + bytes(200)),
    ("unknown magic", GREETING[:8] + bytes(10)),
    ("wrong reply magic", GREETING + bytes(20)),
    ("reply to another option", GREETING + reply(Option.LIST, OptionReply.ACK)),
    ("unknown reply type", GREETING + reply(Option.GO, 17)),
    ("reply of a gigabyte", GREETING + wire.OPTION_REPLY.pack(0x0003E889045565A9, 7, 3, 1 << 30)),
    ("success without information", GREETING + reply(Option.GO, OptionReply.ACK)),
    ("short information", GREETING + reply(Option.GO, OptionReply.INFO, bytes(5)) + reply(Option.GO, OptionReply.ACK)),
    (
        "wrong block sizes",
        GREETING + EXPORT_INFO + reply(Option.GO, OptionReply.INFO, b"\0\3" + bytes(12)) + reply(Option.GO, 1),
    ),
]


@pytest.mark.parametrize(("claim", "data"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_client_leaves_a_server_that_breaks_the_protocol(claim, data):
    for step in (1, len(data)):
        client = ClientHandshake("disk", structured=False)
        for at in range(0, len(data), step):
            client.receive(data[at : at + step])
        assert client.phase is Phase.CLOSED
        assert client.error


def test_a_client_does_not_listen_to_a_list_without_end():
    client = ClientHandshake(goal=Goal.LIST)
    client.receive(GREETING)
    entry = reply(Option.LIST, OptionReply.SERVER, wire.pack_server_entry("a" * 4096, "b" * 4096))
    for _ in range(2 * MAX_ANSWERS_BYTES // len(entry)):
        client.receive(entry)
    assert client.phase is Phase.CLOSED


def test_a_client_counts_the_answers_to_all_that_it_asks_together():
    """What was made of one may be kept until the handshake is over."""
    one = reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, wire.pack_meta_context(1, BASE))
    other = reply(Option.GO, OptionReply.INFO, wire.pack_info_export(512, 1))
    told = GREETING + reply(Option.STRUCTURED_REPLY, OptionReply.ACK) + one + reply(Option.SET_META_CONTEXT, *ACK)
    for answers_max, phase in ((len(one + other), Phase.TRANSMISSION), (len(one + other) - 1, Phase.CLOSED)):
        client = ClientHandshake("disk", answers_max=answers_max)
        client.receive(told + other + reply(Option.GO, *ACK))
        assert client.phase is phase
        assert bool(client.error) == (phase is Phase.CLOSED)


def test_a_client_ignores_information_it_does_not_know():
    client = ClientHandshake("disk", structured=False)
    unknown = reply(Option.GO, OptionReply.INFO, b"\x12\x34whatever")
    client.receive(GREETING + unknown + EXPORT_INFO + reply(Option.GO, OptionReply.ACK))
    assert client.phase is Phase.TRANSMISSION


# Fuzzing.

SESSION = (
    FIXED
    + STRUCTURED
    + option(Option.LIST)
    + option(LIST_META, meta_query("disk", ("base:",)))
    + SET_DISK
    + option(Option.INFO, info_request("disk", (Info.NAME, Info.BLOCK_SIZE)))
    + option(99, b"what")
    + option(Option.GO, info_request("disk"))
    + b"requests"
)


def served(data):
    handshake = ServerHandshake(EXPORTS, "disk")
    handshake.receive(data)
    return handshake.data_to_send()


ANSWER = served(SESSION)


@st.composite
def mutated(draw, original):
    data = bytearray(original)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        if draw(st.booleans()):
            data[at] = draw(st.integers(0, 255))
        else:
            data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=8))
    return bytes(data)


def pieces(data, cuts):
    at = 0
    for size in [*cuts, len(data)]:
        yield data[at : at + size]
        at += size


def kept(handshake):
    """Bytes a handshake holds back; nothing else of it grows with its input."""
    return len(handshake._incoming)


@settings(max_examples=300, deadline=None)
@given(mutated(SESSION), st.lists(st.integers(1, 40), max_size=30))
def test_no_bytes_upset_the_server_and_splitting_them_changes_nothing(data, cuts):
    whole, split = ServerHandshake(EXPORTS, "disk"), ServerHandshake(EXPORTS, "disk")
    whole.receive(data)
    sent = b""
    for piece in pieces(data, cuts):
        split.receive(piece)
        sent += split.data_to_send()
        assert kept(split) <= MAX_OPTION_DATA_BYTES
    assert sent == whole.data_to_send()
    assert (split.phase, split.agreement, split.error) == (whole.phase, whole.agreement, whole.error)
    if split.phase is not Phase.CLOSED:
        assert split.leftover == whole.leftover


@settings(max_examples=300, deadline=None)
@given(mutated(ANSWER), st.sampled_from(Goal), st.lists(st.integers(1, 40), max_size=30))
def test_no_bytes_upset_the_client(data, goal, cuts):
    client = ClientHandshake("disk", goal)
    for piece in pieces(data, cuts):
        client.receive(piece)
        client.data_to_send()
        assert kept(client) <= MAX_OPTION_DATA_BYTES + 20


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_upsets_neither(data):
    for handshake in (ServerHandshake(EXPORTS, "disk"), ClientHandshake("disk")):
        handshake.receive(data)
        assert kept(handshake) <= len(data)


def test_a_server_never_offers_what_the_standard_forbids():
    for wrong in (
        {"flags": T.HAS_FLAGS | T.SEND_DF},
        {"flags": T.HAS_FLAGS | T.SEND_FAST_ZERO},
        {"flags": T.HAS_FLAGS, "block_min": 3},
        {"flags": T.HAS_FLAGS, "block_preferred": 256},
        {"flags": T.HAS_FLAGS, "block_max": 1024},
        {"flags": T.HAS_FLAGS, "description": "a\0b"},
    ):
        export = ExportInfo(**{"name": "disk", "size": 1, "description": "", **wrong})
        with pytest.raises(AssertionError):
            ServerHandshake({"disk": export}, "disk")
