"""The fuzzer's targets: they hold of the codec as it is, and of no codec that is wrong.

Source:  check/fuzz/targets.py, "Invariant"; the documentation of libFuzzer, "Output", "Options".
"""

import os
import signal
import struct
import subprocess
import sys
from collections import deque
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import CLIENT_LIMIT_S, END_LIMIT_S, ROOT, START_LIMIT_S, eventually

from check.fuzz import command, targets
from check.fuzz.kept import Kept, kept_by
from check.fuzz.seeds import seeds, words
from check.fuzz.stream import HEADER_BYTES, PIECES_MAX, REST_BYTES, STREAM_MAX_BYTES, decode, encode, pieces
from check.fuzz.targets import TARGETS, Broken
from impl.errors import PeerError
from impl.nbd import reply_reader, server_handshake, wire
from impl.nbd.client_handshake import ClientHandshake
from impl.nbd.reply_reader import ReplyReader
from impl.nbd.requests import ExtendedRequestReader, RequestReader
from impl.nbd.server_handshake import Phase, ServerHandshake

SEEDS = {target: seeds(target) for target in TARGETS}
SERVER, CLIENT, REQUESTS, REPLIES = TARGETS


# The codec as it is.


@pytest.mark.parametrize("target", TARGETS)
def test_the_codec_holds_where_the_fuzzer_begins(target):
    for seed in SEEDS[target]:
        TARGETS[target](seed)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300))
def test_the_codec_holds_for_noise(target, data):
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(draws=st.data())
def test_the_codec_holds_for_conversations_that_were_changed(target, draws):
    data = bytearray(draws.draw(st.sampled_from(SEEDS[target])))
    for _ in range(draws.draw(st.integers(1, 4))):
        at = draws.draw(st.integers(0, len(data) - 1))
        data[at : at + draws.draw(st.integers(0, 4))] = draws.draw(st.binary(max_size=8) | st.sampled_from(words()))
    TARGETS[target](bytes(data))


def test_seeds_come_to_the_ends_that_there_are(monkeypatch):
    """Were they refused at once, or cut short, the fuzzer would begin with nothing."""
    seen = []
    play = targets.play
    monkeypatch.setattr(targets, "play", lambda *arguments: seen.append(play(*arguments)) or seen[-1])

    def outcomes(target):
        seen.clear()
        for seed in SEEDS[target]:
            TARGETS[target](seed)
        return seen

    for target in (SERVER, CLIENT):
        ends = {(outcome.state[0], outcome.error is None) for outcome in outcomes(target) if outcome.state}
        assert ends >= {(Phase.TRANSMISSION, True), (Phase.CLOSED, True), (Phase.CLOSED, False)}
    requested = outcomes(REQUESTS)
    assert {message.command for outcome in requested for message in outcome.messages} == set(range(8))
    assert {outcome.error is None for outcome in requested} == {True, False}
    answered = [message for outcome in outcomes(REPLIES) for message in outcome.messages]
    assert {len(message.data) for message in answered} == {0, 100}
    assert {chunk for message in answered for chunk in message.chunks} == {0, 1, 2, 5, 6, 0x8001}
    assert any(message.statuses for message in answered)


# Codecs that are wrong. Each fault is one that a careless change could bring.


class Handshaking:
    """A fault that either handshake may have."""


class FailsOnceItHasAgreed(Handshaking):
    def receive(self, data):
        super().receive(data)
        if self.phase is Phase.TRANSMISSION:
            raise KeyError("agreed")


class LetsAPeerErrorOut(Handshaking):
    def receive(self, data):
        super().receive(data)
        if self.error:
            raise PeerError(self.error)


class KeepsAllThatItReceives(Handshaking):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.all = []

    def receive(self, data):
        super().receive(data)
        self.all += [data[at : at + 1000] + b"." for at in range(0, len(data), 1000)]


class ForgetsWhatIsNotWhole(Handshaking):
    def receive(self, data):
        super().receive(data)
        self._incoming.clear()


class TakesWhatCameInTheClear(Handshaking):
    def receive(self, data):
        behind = self._incoming
        super().receive(data)
        if self.error and "in the clear" in self.error:
            self.phase, self.error, self.wants_tls = Phase.OPTIONS, None, True
            self._incoming = behind


class Reading:
    """A fault that either reader may have."""


class FailsAtASecondMessage(Reading):
    taken = 0

    def next(self):
        message = super().next()
        if message is not None:
            self.taken += 1
            if self.taken > 1:
                struct.unpack(">I", b"")
        return message


class KeepsAllThatIsReceived(Reading):
    def received(self, count):
        self.all = [*getattr(self, "all", []), *[bytes(range(256)) for _ in range(count // 100 + 1)]]
        super().received(count)


class KeepsAllMessages(Reading):
    def next(self):
        message = super().next()
        self.all = [*getattr(self, "all", []), message]
        return message


class LosesAByteThatComesAlone(Reading):
    def received(self, count):
        if count > 1:
            super().received(count)


class NeverReceives(Reading):
    def buffer(self):
        return super().buffer()[:0]


class IsRightAgainAfterAnError(Reading):
    def next(self):
        if getattr(self, "failed", False):
            return None
        self.failed = True
        message = super().next()
        self.failed = False
        return message


class SaysWhatTheSplitWas(Reading):
    def next(self):
        try:
            return super().next()
        except PeerError as error:
            raise PeerError(f"{error}, behind {self._end - self._start} bytes") from None


class GivesOnePayloadOutForAll(RequestReader):
    """The buffer of the last one is filled again, though it was not given back."""

    shared = bytearray(1 << 20)

    def next(self):
        message = super().next()
        if message is None or not message.payload:
            return message
        self.shared[: len(message.payload)] = message.payload
        return message._replace(payload=memoryview(self.shared)[: len(message.payload)])


class KeepsAllBuffersThatAreGivenBack(Reading):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._spares = deque()


def with_fault(target, fault):
    """The codec of a target that has this fault, and what has to be put in its place."""
    if target in (SERVER, CLIENT):
        base = ServerHandshake if target == SERVER else ClientHandshake
        return base.__name__, type(fault.__name__, (fault, base), {})
    if target == REPLIES:
        return "ReplyReader", type(fault.__name__, (fault, ReplyReader), {})
    kinds = {False: RequestReader, True: ExtendedRequestReader}
    faulty = {extended: type(fault.__name__, (fault, kind), {}) for extended, kind in kinds.items()}
    return "request_reader", lambda agreement, leftover: faulty[agreement.extended](agreement, leftover)


def check_rejected(target, expected, words_of_it):
    with pytest.raises(expected, match=words_of_it or None):
        for seed in SEEDS[target]:
            TARGETS[target](seed)


OF_HANDSHAKES = [
    (FailsOnceItHasAgreed, KeyError, "agreed"),
    (LetsAPeerErrorOut, PeerError, ""),
    (KeepsAllThatItReceives, Broken, "are kept"),
    (ForgetsWhatIsNotWhole, Broken, "in pieces"),
    (TakesWhatCameInTheClear, Broken, "in pieces"),
]
OF_READERS = [
    (FailsAtASecondMessage, struct.error, ""),
    (KeepsAllThatIsReceived, Broken, "are kept"),
    (KeepsAllMessages, Broken, "are kept"),
    (LosesAByteThatComesAlone, Broken, "in pieces"),
    (NeverReceives, Broken, "nothing is received"),
    (IsRightAgainAfterAnError, Broken, "and then None"),
    (SaysWhatTheSplitWas, Broken, "in pieces"),
]
FAULTS = [
    *((target, *fault) for target, fault in product((SERVER, CLIENT), OF_HANDSHAKES)),
    *((target, *fault) for target, fault in product((REQUESTS, REPLIES), OF_READERS)),
    (REQUESTS, KeepsAllBuffersThatAreGivenBack, Broken, "are kept"),
]


@pytest.mark.parametrize(
    ("target", "fault", "expected", "words_of_it"),
    FAULTS,
    ids=[f"{target}-{fault.__name__}" for target, fault, *_ in FAULTS],
)
def test_a_codec_with_a_fault_is_rejected(monkeypatch, target, fault, expected, words_of_it):
    monkeypatch.setattr(targets, *with_fault(target, fault))
    check_rejected(target, expected, words_of_it)


def test_a_payload_that_changes_after_it_was_given_out_is_noticed(monkeypatch):
    monkeypatch.setattr(targets, "request_reader", lambda agreement, leftover: GivesOnePayloadOutForAll(agreement))
    write = wire.pack_request(1, 0, 1, 0, 3)
    with pytest.raises(Broken, match="have changed"):
        targets.requests(encode((), write + b"one" + write + b"two"))


NO_LIMIT = 1 << 62
LIMITS = [  # (target, module, limit of it)
    (SERVER, server_handshake, "MAX_UNSENT_BYTES"),
    (REPLIES, reply_reader, "CHUNKS_COUNT"),
]


@pytest.mark.parametrize(("target", "module", "name"), LIMITS)
def test_a_codec_that_does_not_keep_to_its_limit_is_rejected(monkeypatch, target, module, name):
    monkeypatch.setattr(targets, "chunks_max", lambda expected: 1024)  # the limit, as it is written
    monkeypatch.setattr(module, name, NO_LIMIT)
    check_rejected(target, Broken, "are kept")


def test_a_server_that_keeps_what_it_should_skip_is_rejected(monkeypatch):
    monkeypatch.setattr(ServerHandshake, "_kept", lambda self, header: header.length)
    check_rejected(SERVER, Broken, "are kept")


def test_a_client_that_listens_to_answers_without_end_is_rejected(monkeypatch):
    class Patient(ClientHandshake):
        def __init__(self, *arguments, answers_max, **options):
            super().__init__(*arguments, answers_max=NO_LIMIT, **options)

    monkeypatch.setattr(targets, "ClientHandshake", Patient)
    check_rejected(CLIENT, Broken, "are kept")


# Inputs, and what is counted.


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_every_input_means_something_within_bounds(data):
    found = decode(data)
    assert len(found.settings) == 8
    assert len(found.stream) <= STREAM_MAX_BYTES
    assert all(size > 0 for size in found.sizes)
    listed = list(pieces(found.stream, found.sizes))
    assert b"".join(listed) == found.stream
    assert all(listed)
    assert len(listed) <= PIECES_MAX + STREAM_MAX_BYTES // REST_BYTES


def test_an_input_says_what_was_put_in_it():
    assert decode(encode((7,), b"stream")) == (b"\7" + bytes(7), (STREAM_MAX_BYTES,) * 3, b"stream")
    assert decode(encode((), b"", (1, 127, 130))).sizes == (1, 127, 64)
    assert decode(encode((), b"abc", repeats=128, prefix=1)).stream == b"abcbc"
    assert decode(encode((), b"abc", repeats=255)).stream == b"abc" * 4096
    assert decode(encode((), b"--", filler=128, at=1)).stream == b"-" + b"a" * 16 + b"-"
    assert len(decode(encode((), b"--", filler=255, repeats=255)).stream) == STREAM_MAX_BYTES
    assert list(pieces(b"abcdef", (1, 2))) == [b"a", b"bc", b"d", b"ef"]
    assert len(encode((), b"")) == HEADER_BYTES


def test_everything_that_an_object_keeps_is_counted_once_whatever_it_is_called():
    class Holder:
        pass

    holder = Holder()
    before = kept_by(holder)
    shared = bytes(1000)
    holder.some = [shared, memoryview(shared), {"key": (1, 2, 3)}]
    now = kept_by(holder)
    assert now.content - before.content == 1000 + len("key")
    assert now.items - before.items >= 3 + 1 + 3
    holder.generator = (byte for byte in bytearray(500))
    assert kept_by(holder).content >= now.content + 500
    assert kept_by(len) == Kept(0, 0)


# The command.

# What atheris is to us: it tries what it is given, says how far it came, and ends the process.
ATHERIS = """
import os, sys, time
from contextlib import nullcontext
from pathlib import Path

def instrument_imports(include):
    assert include == ["impl.nbd"] and not any(name.startswith("impl.nbd") for name in sys.modules)
    return nullcontext()

def Setup(arguments, target):
    global flags, folders, try_one
    flags = dict(word.split("=") for word in arguments[1:] if word.startswith("-"))
    folders = [word for word in arguments[1:] if not word.startswith("-")]
    try_one = target

def Fuzz():
    assert flags["-max_total_time"] == "7" and Path(flags["-dict"]).read_text().startswith('"\\\\x4e\\\\x42')
    inputs = [path for folder in folders for path in Path(folder).iterdir()]
    for path in inputs:
        try_one(path.read_bytes())
    Path(folders[0], "new").write_bytes(b"new")
    if "HANGS" in os.environ:
        os.symlink(str(os.getpid()), "pid")
        time.sleep(60)
    print(f"#1 NEW cov: 3 ft: 4\\n#2 NEW cov: 17 ft: 20\\nstat::number_of_executed_units: {len(inputs)}", flush=True)
    if "FINDS" in os.environ:
        Path(flags["-artifact_prefix"] + "crash-1").write_bytes(b"")
        print(f"Test unit written to {flags['-artifact_prefix']}crash-1", flush=True)
    os._exit(int(os.environ.get("STATUS", 0)))
"""


@pytest.fixture
def fuzz(tmp_path):
    """The command, with such an atheris, in a folder of its own."""
    (tmp_path / "atheris.py").write_text(ATHERIS)

    def run(*arguments, start=subprocess.run, **environment):
        bounds = {"capture_output": True, "timeout": CLIENT_LIMIT_S, "check": False} if start is subprocess.run else {}
        return start(
            [sys.executable, "-m", "check.fuzz", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", **environment},
            text=True,
            **bounds,
        )

    return run


def line_of(target, inputs):
    return f"{target}: nothing found in 7 s; {inputs} inputs, {inputs // 7} a second; 17 edges"


def test_every_target_is_fuzzed_from_its_seeds_and_its_corpus(fuzz, tmp_path):
    done = fuzz("all", "--seconds", "7", "--corpus", "corpus")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [line_of(target, len(SEEDS[target])) for target in TARGETS]
    assert (tmp_path / "corpus" / REPLIES / "new").exists()
    done = fuzz(REPLIES, "--seconds", "7", "--corpus", "corpus")
    assert done.stdout == line_of(REPLIES, len(SEEDS[REPLIES]) + 1) + "\n"


def test_what_is_found_is_named_and_how_to_try_it_once_more(fuzz):
    done = fuzz(REPLIES, "--seconds", "7", FINDS="1", STATUS="77")
    assert done.returncode == 1
    assert f"python -m check.fuzz {REPLIES} fuzz-{REPLIES}-crash-1" in done.stdout
    assert "cov: 17" in done.stderr
    done = fuzz(REPLIES, f"fuzz-{REPLIES}-crash-1")
    assert (done.returncode, done.stdout) == (0, f"fuzz-{REPLIES}-crash-1: nothing found\n")


def test_a_fuzzer_that_fails_has_not_found_nothing(fuzz):
    done = fuzz(REPLIES, "--seconds", "7", STATUS="3")
    assert done.returncode == 1
    assert "status 3" in done.stderr


def test_whoever_ends_the_command_ends_the_fuzzer(fuzz, tmp_path):
    pid = tmp_path / "pid"
    process = fuzz(REPLIES, "--seconds", "7", start=subprocess.Popen, HANGS="1")
    eventually(pid.is_symlink, "the fuzzer has begun", START_LIMIT_S)
    process.terminate()
    assert process.wait(END_LIMIT_S) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(os.readlink(pid)), 0)


@pytest.mark.parametrize(
    "arguments", [(), ("nothing",), (REPLIES, "no-such-file"), ("all", "atheris.py"), (REPLIES, "--seconds", "0")]
)
def test_wrong_usage_is_one_line(fuzz, arguments):
    done = fuzz(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_an_input_that_breaks_the_rule_is_shown_with_the_traceback(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(targets, *with_fault(REQUESTS, FailsAtASecondMessage))
    path = tmp_path / "input"
    path.write_bytes(SEEDS[REQUESTS][0])
    with pytest.raises(SystemExit) as ended:
        command.main([REQUESTS, str(path)])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.out == f"{path}: breaks the rule\n"
    assert "struct.error" in said.err


def test_without_atheris_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        command.main([REQUESTS])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "pip install 'cowproof[fuzz]'" in said.err
    assert said.err.count("\n") == 1


def test_the_help_names_every_target(fuzz):
    done = fuzz("--help")
    assert done.returncode == 0
    assert all(f"\n    {target} " in done.stdout for target in TARGETS)
