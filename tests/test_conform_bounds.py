"""The kit's own promises: whatever a server does, it comes to an end, keeps within its memory, leaves nothing behind,
says in a line what is wrong with how it was called, and blames nobody for what the protocol allows.
"""

import errno
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from certificates import write_certificates
from click.testing import CliRunner
from conform_servers import InProcess, failed, serving
from servers import need

from check.conform import concurrency, link, room
from check.conform.command import conform
from check.conform.rule import RULES, Failure, Need, Rule, Verdict
from check.conform.run import chosen, run, verdict_of
from check.conform.subject import Settings, Subject, started
from check.history.record import NoSpace
from impl.client.uri import Target
from impl.errors import StartError, UsageError
from impl.nbd.agreement import Phase, Tls
from impl.nbd.server_handshake import ServerHandshake
from impl.server.session import TlsOffer
from impl.tls import server_context

CHECKOUT = Path(__file__).parent.parent
REPLY, LIST, SERVER = 0x3E889045565A9, 3, 2
SOON_S = 30


@contextmanager
def talking(place, talk):
    """A server that greets, and answers NBD_OPT_LIST by talking."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()

    def serve():
        while True:
            try:
                sock, _ = listener.accept()
                with closing(sock):
                    sock.sendall(b"NBDMAGICIHAVEOPT\0\3")
                    sock.recv(4 + 16, socket.MSG_WAITALL)
                    talk(sock)
            except OSError:
                if listener.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Subject(Target(path=str(place)))
    finally:
        listener.close()


def trickle(sock):
    sock.sendall(struct.pack(">QIII", REPLY, LIST, SERVER, 1 << 20))
    while True:
        sock.sendall(b"x")
        threading.Event().wait(0.01)


def never_last(sock):
    while True:
        sock.sendall(struct.pack(">QIII", REPLY, LIST, SERVER, 4) + bytes(4))
        threading.Event().wait(0.01)


def endless(sock):
    while True:
        sock.sendall(struct.pack(">QIII", REPLY, LIST, SERVER, 600) + bytes(600))


@pytest.mark.parametrize("talk", [trickle, never_last])
def test_whoever_never_comes_to_an_end_is_given_up(talk, monkeypatch, short_path):
    monkeypatch.setattr(link, "TALK_LIMIT_S", 0.3)
    with talking(short_path / "s", talk) as subject:
        assert "comes to no end" in failed(subject, [RULES["handshake/list"]])["handshake/list"]


def test_of_what_a_server_says_not_all_is_kept(monkeypatch, short_path):
    monkeypatch.setattr(link, "REPLY_MAX_BYTES", 1000)
    with talking(short_path / "s", endless) as subject:
        assert "more than 1000 bytes" in failed(subject, [RULES["handshake/list"]])["handshake/list"]


def test_a_mistake_of_the_kit_is_not_blamed_on_the_server_and_ends_nothing(caplog):
    def check(subject):
        raise KeyError("something")

    verdict, detail = verdict_of(Rule("group/name", Need.MUST, "", "", check), Subject(Target()))
    assert verdict is Verdict.NOT_APPLICABLE
    assert "the kit itself has failed" in detail
    assert "KeyError" in caplog.text


def of_mine(mark):
    """The processes that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("only", ["semantics/read", "concurrency/write", "durability/flush"])
def test_where_the_kit_has_no_room_no_server_is_blamed(only, monkeypatch):
    """What a server writes goes to the kit's folder, too, and would fail there."""
    free = iter([1 << 40] * 2)  # when it begins
    monkeypatch.setattr(room, "free_bytes", lambda _: next(free, 100 << 10))
    server = shlex.join([sys.executable, "-m", "impl.server"])
    done = CliRunner().invoke(
        conform, ["--start", f"{server} -U $unixsocket $baseuri", "--only", only, "--only", "tls/*"]
    )
    assert isinstance(done.exception, room.NoRoom), done.output
    assert re.search(r"has 100K left.*expected 128M; set \$TMPDIR", str(done.exception))
    assert "fail" not in done.output


def test_a_file_of_the_kit_that_cannot_be_written_is_no_failure_of_a_server(monkeypatch):
    def full(_path, _content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(room.NoRoom, match=r"cannot write to .*: No space left"):
        with started("exec true $unixsocket $base"):
            pass


def test_what_fails_while_the_disk_is_full_is_nobodys_fault(monkeypatch):
    with pytest.raises(ValueError, match="mistake"), room.temporary_folder() as folder:
        raise ValueError("a mistake")
    assert not folder.exists()
    monkeypatch.setattr(room, "is_full", lambda _: True)
    with room.temporary_folder():
        pass
    with pytest.raises(room.NoRoom, match=r"is full, .* whose fault it is: a mistake"), room.temporary_folder():
        raise ValueError("a mistake")


DISKS = [  # (claim, free blocks of 4 KiB, files there may be in all, more files, whether it is full)
    ("empty", 1 << 20, 1000, 900, False),
    ("without a limit of files", 1 << 20, 0, 0, False),
    ("without room", 1, 1000, 900, True),
    ("with too many files", 1 << 20, 1000, 1, True),
]


@pytest.mark.parametrize(("claim", "blocks", "files", "more", "expected"), DISKS, ids=[disk[0] for disk in DISKS])
def test_a_disk_is_full_of_bytes_or_of_files(claim, blocks, files, more, expected, monkeypatch, tmp_path):
    found = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_files=files, f_favail=more)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert room.is_full(tmp_path) is expected


def test_a_rule_that_fails_because_a_server_fills_the_disk_ends_the_kit(monkeypatch):
    monkeypatch.setattr(room, "is_full", lambda _: True)
    rule = RULES["handshake/list"]
    broken = Rule(rule.name, rule.need, rule.section, rule.says, fails)
    with started(f"exec {shlex.join([sys.executable, '-m', 'impl.server'])} -U $unixsocket memory:1M") as subject:
        with pytest.raises(room.NoRoom):
            verdict_of(broken, subject)


def fails(_subject):
    raise Failure("a write fails")


def test_a_history_for_which_there_is_no_room_is_no_failure_of_a_server(monkeypatch, short_path):
    def full(_recipe, _path):
        raise NoSpace("no room for the history")

    monkeypatch.setattr(concurrency, "record", full)
    subject = InProcess(Target(path=str(short_path / "s")), settings=Settings(claims=frozenset({"block"})))
    with pytest.raises(room.NoRoom, match="no room for the history"):
        verdict_of(RULES["concurrency/block"], subject)


def test_a_history_that_cannot_be_kept_is_no_failure_of_a_server(tmp_path):
    (tmp_path / "history").write_text("seen", encoding="utf-8")
    subject = Subject(Target(path="s"), settings=Settings(keep=tmp_path / "not-there"))
    with pytest.raises(room.NoRoom, match=r"cannot write to .*not-there"):
        list(concurrency._kept(subject, tmp_path / "history", "sector"))


def test_a_server_that_goes_into_the_background_is_ended_with_all_it_left(short_path, monkeypatch):
    need("nbdkit", "nbdkit")
    monkeypatch.setenv("TMPDIR", str(short_path))
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    with started("nbdkit -U $unixsocket memory 1M") as subject:
        assert failed(subject, chosen(["handshake/list"])) == {}
        assert not of_mine(str(short_path)), "each rule has a server of its own"
        with subject.fresh():
            assert of_mine(str(short_path))
    assert not of_mine(str(short_path))
    assert not list(short_path.glob("conform-*"))


def stopped_amid(short_path, number, *arguments):
    """The kit, told to stop while it tries something; its exit status."""
    environment = {**os.environ, "TMPDIR": str(short_path), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "check.conform", *arguments]
    kit = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + SOON_S
    while not list(short_path.glob("conform-*/s")) and time.monotonic() < ends:
        time.sleep(0.01)
    assert list(short_path.glob("conform-*/s")), "it has not begun"
    kit.send_signal(number)
    return kit.wait(SOON_S)


STUBBORN = """\
import signal, socket, sys, threading
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
held = []
while True:
    sock, _ = listener.accept()
    sock.sendall(b"NBDMAGICIHAVEOPT\\0\\3")
    held.append(sock)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_stops_the_kit_finds_nothing_left_of_it(number, short_path):
    (short_path / "stubborn.py").write_text(STUBBORN)
    server = f"exec {sys.executable} {short_path / 'stubborn.py'} $unixsocket"
    assert stopped_amid(short_path, number, "--start", server) != 0
    assert not of_mine(str(short_path))
    assert not list(short_path.glob("conform-*"))


# Called in a wrong way.


def said(*arguments):
    """What the command says of arguments that it cannot do with."""
    done = CliRunner().invoke(conform, arguments)
    assert isinstance(done.exception, UsageError | StartError), done.output
    return str(done.exception)


def test_where_nobody_is_that_is_said_and_nothing_tried(short_path):
    assert "cannot be connected to" in said(f"nbd+unix:///?socket={short_path / 'nobody'}")


def test_tls_is_spoken_if_the_server_wants_it_and_only_then(short_path, tmp_path):
    write_certificates(tmp_path)
    tls = TlsOffer(Tls.REQUIRE, server_context(str(tmp_path), verify_peer=False))
    with serving(short_path / "s", tls=tls) as target:
        assert "requires TLS" in said(target.uri)
    with serving(short_path / "t") as target:
        assert "has no TLS" in said(target.uri.replace("nbd+unix", "nbds+unix") + "&tls-verify-peer=false")


WRONG = [
    (["nbd://localhost", "--tls"], "go with --start"),
    (["nbd://localhost", "--export", "x"], "go with --start"),
    (["nbd://localhost", "--json", "/nonexistent/x"], "/nonexistent/x"),
    (["nbd://localhost", "--keep", "/proc/x"], "--keep /proc/x"),
    (["--start", "x $unixsocket", "--tls-certificates", "/nonexistent"], "no such folder"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_what_would_go_wrong_behind_a_long_run_is_said_before_it(arguments, words):
    assert words in said(*arguments)


def test_what_fails_can_be_tried_alone_by_what_is_said_of_it(short_path, monkeypatch):
    monkeypatch.setattr(link, "LIMIT_S", 0.3)
    (short_path / "stubborn.py").write_text(STUBBORN.replace("signal.SIG_IGN", "signal.SIG_DFL"))
    server = f"exec {sys.executable} '{short_path / 'stubborn.py'}' $unixsocket"
    given = ["--start", server, "--quick", "--claim", "sector"]
    done = CliRunner().invoke(conform, [*given, "--only", "handshake/abort"])
    assert done.exit_code == 1, done.output
    alone = next(line for line in done.output.splitlines() if line.startswith("alone: "))
    words = shlex.split(alone.removeprefix("alone: cowproof conform "))
    assert words[:2] == ["--start", server]
    assert {"--quick", "--claim", "sector", "--only", "handshake/abort"} <= set(words)


# What the protocol allows.

QUICK = ("handshake", "tls", "transmission", "contexts", "status", "extended", "semantics")
ALLOWED = [
    ("nbdkit", "exec nbdkit -f -U $unixsocket memory 0"),
    ("nbdkit", "exec nbdkit -f -U $unixsocket memory 1"),
    ("nbdkit", "exec nbdkit -f -U $unixsocket memory 511"),
    ("nbdkit", "exec nbdkit -f --no-sr -U $unixsocket --filter=nozero file $base"),
    ("nbdkit", "exec nbdkit -f -r -U $unixsocket file $base"),
    (
        "nbdkit",
        "exec nbdkit -f -U $unixsocket --filter=blocksize-policy --filter=nozero file $base blocksize-minimum=4096 "
        "blocksize-preferred=4096 blocksize-maximum=65536 blocksize-error-policy=error",
    ),
]


@pytest.mark.parametrize(("program", "command"), ALLOWED)
def test_nobody_is_blamed_for_what_the_protocol_allows(program, command):
    need(program, program)
    with started(command, settings=Settings(quick=True)) as subject:
        results = run(chosen(QUICK), lambda: subject, lambda _: None)
    assert {result.rule.name: result.detail for result in results if result.verdict is Verdict.FAIL} == {}
    assert sum(result.verdict is Verdict.PASS for result in results) >= 20


def test_a_server_of_one_connection_is_not_asked_for_two():
    need("qemu-nbd", "qemu-utils")
    names = ["transmission/multi-conn", "malformed/noise", "concurrency/read", "transmission/fua"]
    with started("exec qemu-nbd -t -f raw -k $unixsocket $base", settings=Settings(quick=True)) as subject:
        results = run([RULES[name] for name in names], lambda: subject, lambda _: None)
    assert not [result.detail for result in results if result.verdict is Verdict.FAIL]


def test_a_server_that_greets_late_is_not_spared_nonsense(short_path, monkeypatch):
    """Whoever does not wait for the greeting says nothing at all, and finds nothing."""
    heard, shipped = [], link.Link.send

    def send(self, data):
        heard.append(data)
        shipped(self, data)

    monkeypatch.setattr(link.Link, "send", send)
    shipped_greeting = ServerHandshake.data_to_send

    def late(self):
        if self.phase is Phase.CLIENT_FLAGS:
            threading.Event().wait(0.05)
        return shipped_greeting(self)

    monkeypatch.setattr(ServerHandshake, "data_to_send", late)
    with serving(short_path / "s") as target:
        assert failed(InProcess(target, settings=Settings(quick=True)), [RULES["malformed/noise"]]) == {}
    assert sum(len(data) > 100 for data in heard) >= 5
