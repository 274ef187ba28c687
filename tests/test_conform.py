"""The kit: our server passes, each of many faulty ones fails by the rule that names its fault and by no other, and
whatever a server does, the kit comes to an end.

Faulty servers are ours, with one thing done otherwise; all in this process, so that hundreds can be had in a second.
"""

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from servers import need

from check import mutants
from check.conform import link
from check.conform.command import conform
from check.conform.concurrency import PART
from check.conform.disk import VECTORS, base_bytes
from check.conform.rule import RULES, Failure, Need, NotApplicable, Rule, Verdict
from check.conform.run import Result, as_json, as_junit, chosen, run, verdict_of
from check.conform.subject import Settings, Subject, started, there
from check.conform.vectors import SIZE
from check.live.programs import BLOCK_BYTES
from impl.base.memory import BytesBase
from impl.base.open import open_base
from impl.client.uri import Target
from impl.errors import StartError, UsageError
from impl.nbd.agreement import Phase
from impl.nbd.constants import Command, OptionReply, TransmissionFlag
from impl.nbd.server_handshake import ServerHandshake
from impl.overlay.overlay import Overlay
from impl.overlay.statemap import NOT_ALLOCATED
from impl.server import export, session
from impl.server.commands import Commands
from impl.server.export import ExportOptions, make_export
from impl.server.listeners import listen_unix
from impl.server.server import Server

C = Command
SOON_S = 20


@contextmanager
def serving(place, disk=VECTORS, block_size=4096, **options):
    """A server of ours in this process, over the base of the vectors, or a slow one."""
    base = open_base(disk.name) if disk.is_pattern else BytesBase(disk.content())
    made = make_export(base, ExportOptions(store="memory", block_size=block_size, **options))
    server = Server({"": made}, "", 4)
    listener = listen_unix(str(place))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Target(path=str(place))
    finally:
        server.stop()
        server.stop()  # a second time: without waiting
        thread.join(SOON_S)
        listener.close()
        made.store.close()


@dataclass(frozen=True)
class InProcess(Subject):
    """A subject whose fresh servers are made here."""

    options: dict = field(default_factory=dict)
    has_slow_disks = True

    @contextmanager
    def fresh(self, disk=VECTORS):
        block_size = BLOCK_BYTES if disk.is_pattern else 4096
        with serving(f"{self.target.path}-fresh", disk, block_size, **self.options) as target:
            yield replace(self, target=target)


@pytest.fixture
def ours(short_path):
    with serving(short_path / "s") as target:
        yield InProcess(target)


def failed(subject, rules=None):
    """The names of the rules that a server fails."""
    results = run(list(RULES.values()) if rules is None else rules, lambda: subject, lambda _: None)
    return {result.rule.name: result.detail for result in results if result.verdict is Verdict.FAIL}


# Concurrency takes time: faults of other kinds are not looked for there.
ALONE = [rule for rule in RULES.values() if rule.group not in ("concurrency", "durability")]
NOT_OURS = {"concurrency/sector", "concurrency/block"}  # we claim more: requests


def test_our_server_passes_all_rules(ours):
    quick = InProcess(ours.target, settings=Settings(quick=True, claims=frozenset({"request"})))
    results = run(ALONE, lambda: ours, lambda _: None)
    results += run(chosen(["concurrency"]), lambda: quick, lambda _: None)
    found = {result.rule.name: result.detail for result in results if result.verdict is not Verdict.PASS}
    assert set(found) == NOT_OURS, found


# Faulty servers.

HANDSHAKES, SERVERS = {}, {}


def handshake(rule):
    """A handshake that breaks a rule."""

    def register(made):
        HANDSHAKES[made.__name__] = (rule, made)
        return made

    return register


def commands(rule):
    """Commands that break a rule: a function of the shipped answer, if there is one, and the request."""

    def register(made):
        SERVERS[made.__name__] = (rule, made)
        return made

    return register


@handshake("handshake/unknown-option")
class HangsUpOnWhatItDoesNotKnow(ServerHandshake):
    def _serve(self, header, data):
        if header.option not in self._RULES and not header.length:
            self._close("what is that?")
        else:
            super()._serve(header, data)


@handshake("handshake/unknown-option-with-data")
class TakesDataForAnOption(ServerHandshake):
    def _take_header(self):
        found = super()._take_header()
        if self._header is not None and self._header.option not in self._RULES:
            self._skip = 0
        return found


@handshake("handshake/client-flags")
class IgnoresClientFlags(ServerHandshake):
    def _take_client_flags(self):
        self._incoming[:3] = bytes(3)
        return super()._take_client_flags()

    _STEPS = {**ServerHandshake._STEPS, Phase.CLIENT_FLAGS: _take_client_flags}


@handshake("handshake/abort")
class LeavesWithoutAWord(ServerHandshake):
    def _serve(self, header, data):
        if header.option == 2 and not header.length:
            self._close(None)
        else:
            super()._serve(header, data)


@handshake("handshake/abort-with-data")
class RefusesDataOfAnAbort(ServerHandshake):
    def _serve(self, header, data):
        if header.option == 2 and header.length:
            self._reply(2, OptionReply.ERR_INVALID)
        else:
            super()._serve(header, data)


@handshake("handshake/list-with-data")
class ListsWhateverIsBehind(ServerHandshake):
    def _serve(self, header, data):
        super()._serve(header._replace(length=0) if header.option == 3 else header, b"" if header.option == 3 else data)


@handshake("handshake/list")
class ListsNamesThatAreTooLong(ServerHandshake):
    def _list(self, option, _):
        self._reply(option, OptionReply.SERVER, bytes.fromhex("00000fff") + b"short")
        self._reply(option, OptionReply.ACK)

    _RULES = {**ServerHandshake._RULES, 3: ServerHandshake._RULES[3]._replace(handler=_list)}


@handshake("handshake/go-malformed")
class TakesAnyNameForUnknown(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        super()._reply(
            option, OptionReply.ERR_UNKNOWN if (option, reply) == (7, OptionReply.ERR_INVALID) else reply, data
        )


@handshake("handshake/info-export")
class HasNoFlags(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_export = option in (6, 7) and reply == OptionReply.INFO and data[:2] == bytes(2)
        super()._reply(option, reply, data[:-1] + bytes([data[-1] & ~1]) if is_export else data)


@handshake("handshake/flags")
class SendsDfUnasked(ServerHandshake):
    def _flags(self, export):
        return super()._flags(export) | TransmissionFlag.SEND_DF


@handshake("handshake/block-sizes")
class HasOddBlocks(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_sizes = option in (6, 7) and reply == OptionReply.INFO and data[:2] == b"\0\3"
        super()._reply(option, reply, data[:6] + b"\0\0\x0f\xff" + data[10:] if is_sizes else data)


@handshake("handshake/info-twice")
class TellsMoreTheSecondTime(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        super()._reply(option, reply, data)
        if option == 7 and reply == OptionReply.INFO and data[:2] == b"\0\0":
            super()._reply(option, OptionReply.INFO, b"\0\2other")


@handshake("handshake/structured-with-data")
class StructuresWhateverIsBehind(ServerHandshake):
    def _serve(self, header, data):
        super()._serve(header._replace(length=0) if header.option == 8 else header, data)


@handshake("handshake/context-too-early")
class SelectsContextsTooEarly(ServerHandshake):
    def _meta_queries(self, data):
        was, self._structured = self._structured, True
        try:
            return super()._meta_queries(data)
        finally:
            self._structured = was


@handshake("handshake/unknown-context")
class RefusesContextsItDoesNotKnow(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_none = option == 10 and reply == OptionReply.ACK and not self._contexts
        super()._reply(option, OptionReply.ERR_UNKNOWN if is_none else reply, data)


@handshake("handshake/context-ids")
class NumbersAllContextsAlike(ServerHandshake):
    def _reply(self, option, reply, data=b""):
        is_context = option == 10 and reply == OptionReply.META_CONTEXT
        super()._reply(option, reply, b"\0\0\0\1" + data[4:] if is_context else data)


@handshake("handshake/export-name")
class HasNoZeroes(ServerHandshake):
    def _export_name(self, option, data):
        super()._export_name(option, data)
        if not self._no_zeroes:
            self._outgoing[-100:] = b"x" * 100

    _RULES = {**ServerHandshake._RULES, 1: ServerHandshake._RULES[1]._replace(handler=_export_name)}


@commands("transmission/unknown-command")
def says_eio_to_what_it_does_not_know(self, request, shipped):
    return self.error(request, 5, "") if request.command == 0x7FFF else shipped()


@commands("transmission/error-values")
def says_errors_of_its_own(self, request, shipped):
    return self.error(request, 200, "") if (request.offset, request.length) == (SIZE, 1) else shipped()


@commands("transmission/read-beyond-the-end")
def says_eio_beyond_the_end(self, request, shipped):
    is_it = (request.command, request.offset, request.length) == (C.READ, SIZE, 512)
    return self.error(request, 5, "") if is_it else shipped()


@commands("transmission/write-beyond-the-end")
def says_eio_of_writes_beyond_the_end(self, request, shipped):
    is_it = request.error and request.command == C.WRITE and request.length == 512 and request.offset == SIZE
    return self.error(request, 5, "") if is_it else shipped()


@commands("transmission/unknown-flag")
def ignores_flags(self, request, shipped):
    if request.flags == 1 << 15:
        return Commands.start(self, request._replace(flags=0, error=0, message=""))
    return shipped()


@commands("transmission/cookies")
def answers_others_in_between(self, request, shipped):
    if request.cookie == 60 * 0x1234_5678_9ABC:
        request = request._replace(cookie=1)
        return Commands.start(self, request)
    return shipped()


@commands("transmission/structured-read")
def leaves_the_last_byte_out(self, request, shipped):
    if (
        request.length == SIZE
        and request.command == C.READ
        and self._structured
        and not request.flags
        and request.cookie == 7
    ):
        return Commands.start(self, request._replace(length=request.length - 1))
    return shipped()


@commands("transmission/df")
def fragments_though_df_forbids_it(self, request, shipped):
    if request.command == C.READ and request.flags & 4 and request.cookie == 7:
        half = request.length // 2
        parts = [
            self._overlay.pread(request.offset, half),
            self._overlay.pread(request.offset + half, request.length - half),
        ]
        return self._chunks(request, parts)
    return shipped()


@commands("transmission/flush")
def cannot_flush(self, request, shipped):
    return self.error(request, 5, "") if request.command == C.FLUSH and request.cookie == 7 else shipped()


@commands("transmission/status-without-context")
def tells_status_without_a_context(self, request, shipped):
    return self._done(request) if request.command == C.BLOCK_STATUS and not self._contexts else shipped()


@commands("transmission/multi-conn")
def reads_what_was_there_before(self, request, shipped):
    if (request.command, request.offset, request.length, request.cookie) == (C.READ, 3, 5, 3):
        return [self._replies.data_header(request, 3, 5, True), base_bytes()[3:8]]
    return shipped()


@commands("semantics/read")
def reads_the_base_of_what_was_written(self, request, shipped):
    is_it = (request.command, request.length) == (C.READ, 1025)
    if is_it and self._overlay.states.at(request.offset // 4096) == 1:
        data = base_bytes()[request.offset : request.offset + request.length]
        return [self._replies.data_header(request, request.offset, len(data), True), data]
    return shipped()


@commands("semantics/write")
def loses_the_end_of_a_write(self, request, shipped):
    if request.command == C.WRITE and request.length == 1025:
        return Commands.start(self, request._replace(length=1024, payload=request.payload[:1024]))
    return shipped()


@commands("semantics/trim")
def trims_a_byte_too_much(self, request, shipped):
    if request.command == C.TRIM and request.length == 1025 and not request.error:
        self._overlay.write(request.offset + request.length, b"\0")
    return shipped()


@commands("semantics/write_zeroes")
def zeroes_though_it_says_that_it_would_be_slow(self, request, shipped):
    if request.command == C.WRITE_ZEROES and request.flags & 16 and request.length == 1025:
        self._overlay.zero(request.offset, request.length)
        return self.error(request, 95, "slow")
    return shipped()


@commands("semantics/cache")
def changes_what_it_caches(self, request, shipped):
    if request.command == C.CACHE and request.length == 4096 and not request.error:
        self._overlay.write(request.offset, b"\xff")
    return shipped()


@commands("semantics/flush")
def loses_what_it_flushes(self, request, shipped):
    if request.command == C.FLUSH and request.cookie != 7:
        self._overlay.zero(0, 1)
    return shipped()


@commands("semantics/block_status")
def takes_data_for_holes(self, request, shipped):
    if request.command == C.BLOCK_STATUS and request.length == 1025 and self._contexts:
        return [
            self._replies.block_status(request, context, [(1025, 3)], context == self._contexts[-1])
            for context in self._contexts
        ]
    return shipped()


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_faulty_handshake_fails_by_the_rule_that_names_it_and_by_no_other(name, monkeypatch, short_path):
    rule, made = HANDSHAKES[name]
    monkeypatch.setattr(session, "ServerHandshake", made)
    monkeypatch.setattr(link, "LIMIT_S", 0.5)
    tried = chosen(["handshake", "transmission"])
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), tried)) == {rule}


@pytest.mark.parametrize("name", SERVERS)
def test_a_faulty_server_fails_by_the_rule_that_names_it_and_by_no_other(name, monkeypatch, short_path):
    rule, fault = SERVERS[name]

    class Faulty(Commands):
        def start(self, request):
            return fault(self, request, lambda: Commands.start(self, request))

    monkeypatch.setattr(session, "Commands", Faulty)
    monkeypatch.setattr(link, "LIMIT_S", 0.5)
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), ALONE)) == {rule}


# Faults that show only while requests are in flight together.

OVERLAYS = {}


def overlay(rule, **options):
    """An overlay that breaks a rule, in an export with options."""

    def register(made):
        OVERLAYS[made.__name__] = (rule, made, options)
        return made

    return register


@overlay("concurrency/write")
class MergesWithWhatWasThere(mutants.NoSecondLookAtWrites):
    """Stores the block that it has read, and what was written to it meanwhile is gone."""


@overlay("concurrency/read", copy_on_read=lambda: True)
class KeepsWhatItReads(mutants.NoSecondLookAtCopies):
    """Copy-on-read, over what was written meanwhile."""


@overlay("concurrency/cache", copy_on_cache=True)
class KeepsWhatItCaches(mutants.NoSecondLookAtCopies):
    """Copy-on-cache, over what was written meanwhile."""


class ForgetsMeanwhile(Overlay):
    """What there is of blocks that had to be fetched is forgotten."""

    def forget(self, fetched):
        for block in fetched or ():
            self.states.fill(block, block + 1, NOT_ALLOCATED)


@overlay("concurrency/zero")
class ZeroesAndForgets(ForgetsMeanwhile):
    def trim(self, offset, length, fetched=None):
        Overlay.zero(self, offset, length, fetched=fetched)

    def zero(self, offset, length, no_hole=False, fast=False, fetched=None):
        if offset == PART[0]:
            self.forget(fetched)
        super().zero(offset, length, no_hole, fast, fetched)


@overlay("concurrency/trim")
class TrimsAndForgets(ForgetsMeanwhile):
    def trim(self, offset, length, fetched=None):
        self.forget(fetched)
        super().trim(offset, length, fetched)


@overlay("concurrency/trim-stays")
class BringsBackWhatWasTrimmed(Overlay):
    trimmed = False

    def trim(self, offset, length, fetched=None):
        super().trim(offset, length, fetched)
        BringsBackWhatWasTrimmed.trimmed |= length == BLOCK_BYTES

    def zero(self, offset, length, no_hole=False, fast=False, fetched=None):
        super().zero(offset, length, no_hole, fast, fetched)
        BringsBackWhatWasTrimmed.trimmed = False

    def _kept_part(self, block, fetched, from_, to):
        if self.trimmed and block in fetched:
            return memoryview(fetched[block])[from_:to]
        return super()._kept_part(block, fetched, from_, to)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_server_that_loses_writes_fails_by_the_rule_that_names_it_and_by_no_other(name, monkeypatch, short_path):
    rule, made, options = OVERLAYS[name]
    monkeypatch.setattr(export, "Overlay", made)
    # A trim may be lost to any of them.
    not_others = {rule, "concurrency/trim-stays", *NOT_OURS, "concurrency/request"}
    others = [other for other in chosen(["concurrency"]) if other.name not in not_others]
    with serving(short_path / "s", **options) as target:
        named = InProcess(target, settings=Settings(), options=options)
        assert "no order leaves there" in failed(named, [RULES[rule]])[rule]
        assert failed(InProcess(target, settings=Settings(quick=True), options=options), others) == {}


NBDKIT = "exec nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri cow-on-read=true cow-on-cache=true"
QEMU = (
    "qemu-img create -q -f qcow2 -F raw -b $baseuri $overlay && exec qemu-nbd -t -e 9 -f qcow2 -k $unixsocket $overlay"
)
WHOLE, ELSEWHERE = "WRITE 0+65536", "WRITE 32768+4096"

# What docs/races/ says of them, each with the page.
RACES = [
    (NBDKIT, "concurrency/write", f"WRITE 4096+512 beside {WHOLE}"),  # part-beside-whole
    (NBDKIT, "concurrency/read", f"READ 4096+512 beside {WHOLE}"),  # copy-on-read
    (NBDKIT, "concurrency/read", f"READ 4096+512 beside {ELSEWHERE}"),  # copy-on-read-elsewhere
    (NBDKIT, "concurrency/cache", f"CACHE 0+65536 beside {WHOLE}"),  # copy-on-cache
    (NBDKIT, "concurrency/trim-stays", "WRITE 4096+512 beside TRIM 0+65536"),  # part-beside-trim
    (QEMU, "concurrency/write", "WRITE 4096+512 beside ZERO 0+65536"),  # part-beside-zero
]


@pytest.mark.parametrize(("command", "rule", "pair"), RACES)
def test_the_kit_finds_the_races_of_other_peoples_servers_without_being_told(command, rule, pair):
    need(command.removeprefix("exec ").split()[0], "nbdkit" if command is NBDKIT else "qemu-utils")
    with started(command) as subject:
        assert pair in failed(subject, [RULES[rule]])[rule]


# Each cuts its writes where one level allows it and the next does not: at a multiple of so many bytes.
CUTS = {"sector": 256, "block": 512, "request": BLOCK_BYTES}


@pytest.mark.parametrize("level", CUTS)
def test_a_level_that_is_claimed_and_not_kept_is_found_out(level, monkeypatch, short_path, tmp_path):
    class Torn(Overlay):
        def write(self, offset, data, fetched=None):
            cut = min(CUTS[level] - offset % CUTS[level], len(data))
            super().write(offset, data[:cut], fetched)
            if cut < len(data):
                released.wait(0.002)
                super().write(offset + cut, data[cut:])

    released = threading.Event()
    monkeypatch.setattr(export, "Overlay", Torn)
    monkeypatch.setattr(Commands, "_is_small", lambda self, request: False)
    keeps = {"sector": [], "block": ["sector"], "request": ["block"]}[level]
    with serving(short_path / "s") as target:
        for claim in (level, *keeps):
            settings = Settings(quick=True, claims=frozenset({claim}), keep=tmp_path)
            found = failed(InProcess(target, settings=settings), [RULES[f"concurrency/{claim}"]])
            assert bool(found) == (claim == level), found
    assert (tmp_path / f"{level}.jsonl").exists()


def test_every_rule_that_a_server_can_fail_has_a_faulty_server():
    shown = {rule for rule, *_ in [*HANDSHAKES.values(), *SERVERS.values(), *OVERLAYS.values()]}
    shown |= {f"concurrency/{level}" for level in CUTS}
    assert set(RULES) - shown == {"handshake/greeting", "transmission/disconnect"}, "these two are below"


class Odd:
    """A server of one's own making: what it says to whoever connects."""

    def __init__(self, place, talk):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen(100)
        self._talk = talk
        self._held = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(sock)
            self._talk(sock)

    def close(self):
        self._listener.close()
        for sock in self._held:
            sock.close()


ODD = {
    "that says nothing": lambda sock: None,
    "that closes at once": lambda sock: sock.close(),
    "that says something else": lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10),
    "that is of the oldstyle": lambda sock: sock.sendall(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + bytes(136)),
    "that greets, and no more": lambda sock: sock.sendall(b"NBDMAGICIHAVEOPT\0\3"),
    "that never ends": lambda sock: sock.sendall(b"NBDMAGICIHAVEOPT\0\3" + b"\0\3\xe8\x89\x04\x55\x65\xa9" * 4000),
}


@pytest.mark.parametrize("what", ODD)
def test_no_server_hangs_the_kit(what, monkeypatch, short_path):
    monkeypatch.setattr(link, "LIMIT_S", 0.1)
    odd = Odd(short_path / "s", ODD[what])
    try:
        found = failed(Subject(Target(path=str(short_path / "s"))), chosen(["handshake", "transmission"]))
        assert ("handshake/greeting" in found) == (what not in ("that greets, and no more", "that never ends"))
        assert len(found) >= len(chosen(["handshake", "transmission"])) - 1
    finally:
        odd.close()


def test_a_server_that_does_not_close_after_a_disconnect_is_found_out(monkeypatch, short_path):
    monkeypatch.setattr(session.Session, "_heard_all", lambda self: None)
    monkeypatch.setattr(link, "LIMIT_S", 0.3)
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), chosen(["transmission"]))) == {"transmission/disconnect"}


# The command.


def test_other_peoples_servers_are_started_and_ended(short_path):
    need("nbdkit", "nbdkit")
    with started("nbdkit -f -U $unixsocket --filter=cow file $base") as subject:
        assert not failed(subject, chosen(["handshake"]))
        place = subject.target.path
    with pytest.raises(Failure, match="cannot be connected"):
        link.Link(Target(path=place))


STARTS = [
    ("false", UsageError, r"\$unixsocket"),
    ("echo no room >&2; false $unixsocket", StartError, "no room"),
    ("sleep 60 # $unixsocket", StartError, "does not listen"),
]


@pytest.mark.parametrize(("command", "error", "said"), STARTS)
def test_a_server_that_does_not_start_is_told(command, error, said, monkeypatch):
    monkeypatch.setattr("check.conform.place.START_LIMIT_S", 0.3)
    with pytest.raises(error, match=said), started(command):
        pass


def test_without_a_command_what_needs_a_fresh_server_is_not_applicable(ours):
    verdict, detail = verdict_of(RULES["semantics/read"], there(ours.target.uri))
    assert verdict is Verdict.NOT_APPLICABLE
    assert "--start" in detail


def test_rules_are_chosen_by_name_group_and_pattern():
    assert [rule.name for rule in chosen(["handshake/list"])] == ["handshake/list"]
    assert {rule.group for rule in chosen(["semantics"])} == {"semantics"}
    assert len(chosen(["handshake/*"])) == len(chosen(["handshake"]))
    assert len(chosen([])) == len(RULES)
    with pytest.raises(UsageError, match="--list"):
        chosen(["handshake/no-such-rule"])


def a_rule(need_):
    return Rule("group/name", need_, "Section", "Says", lambda subject: None)


RESULTS = [
    Result(a_rule(Need.MUST), Verdict.FAIL, "it <does> not\x00\nat all", 0.5, True),
    Result(a_rule(Need.SHOULD), Verdict.FAIL, "nor that", 0.1, False),
    Result(a_rule(Need.MUST), Verdict.NOT_OFFERED, "none", 0.0, False),
    Result(a_rule(Need.MUST), Verdict.PASS, "", 0.0, False),
]


def test_results_are_json_and_junit():
    found = json.loads(as_json(RESULTS, "somewhere"))
    assert [rule["verdict"] for rule in found["rules"]] == ["fail", "fail", "not offered", "pass"]
    suite = ElementTree.fromstring(as_junit(RESULTS, "some<where"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    assert suite.find("testcase/failure").get("message") == "it <does> not?"


def test_the_command_tells_each_rule_and_how_to_try_it_alone(ours, tmp_path):
    files = ["--json", str(tmp_path / "a.json"), "--junit", str(tmp_path / "a.xml")]
    done = CliRunner().invoke(conform, [ours.target.uri, "--only", "handshake", *files])
    assert done.exit_code == 0, done.output
    assert "pass            handshake/greeting" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["rules"]
    assert ElementTree.parse(tmp_path / "a.xml").getroot().get("failures") == "0"
    assert "handshake/greeting" in CliRunner().invoke(conform, ["--list"]).output


def test_the_status_is_one_for_a_broken_must_and_zero_for_a_should(ours, monkeypatch):
    def breaks(need_):
        def check(subject):
            raise Failure("no")

        return Rule("handshake/list", need_, "Section", "Says", check)

    for need_, status in ((Need.MUST, 1), (Need.SHOULD, 0)):
        monkeypatch.setitem(RULES, "handshake/list", breaks(need_))
        done = CliRunner().invoke(conform, [ours.target.uri, "--only", "handshake/list"])
        assert done.exit_code == status
        assert f"alone: cowproof conform '{ours.target.uri}' --only handshake/list" in done.output


def test_a_uri_and_a_command_are_one_too_many():
    for arguments in ([], ["nbd://localhost", "--start", "x $unixsocket"]):
        done = CliRunner().invoke(conform, arguments)
        assert isinstance(done.exception, UsageError)


def test_not_applicable_is_no_failure():
    def check(subject):
        raise NotApplicable("not here")

    rule = Rule("group/name", Need.MUST, "Section", "Says", check)
    assert verdict_of(rule, Subject(Target())) == (Verdict.NOT_APPLICABLE, "not here")
