"""`--record`: what the server notes of requests and replies; and that without it nothing is in the way.

Source:  impl/server/record.py; specs/history.schema.json.
"""

import itertools
import json
import subprocess
import sys
import threading

import pytest
from json_schema import is_valid
from servers import KIB, MIB, ROOT, SERVER, START_LIMIT_S, eventually

from check.history.format import load
from impl.base.memory import BytesBase, MemoryBase
from impl.base.pattern import PatternBase
from impl.client import connect
from impl.errors import StartError
from impl.history_tags import GRANULE, stamped
from impl.nbd import replies
from impl.nbd.agreement import Agreement
from impl.nbd.constants import Command, CommandFlag, ErrorValue
from impl.nbd.requests import Request
from impl.server.commands import Commands, Later
from impl.server.export import ExportOptions, make_export
from impl.server.outbox import FileSlice
from impl.server.record import RecordedCommands, Recording

SCHEMA = json.loads((ROOT / "specs" / "history.schema.json").read_text(encoding="utf-8"))
C, F, E = Command, CommandFlag, ErrorValue
BLOCK = 64 * KIB
BASE = PatternBase(16 * BLOCK, seed=3)


def asked(command, offset=0, length=0, flags=0, payload=b"", error=0):
    return Request(command, flags, 7, offset, length or len(payload), payload, error, "")


def write(sequence, offset, length):
    return asked(C.WRITE, offset, payload=stamped(0xC0, 1, sequence, offset, length))


class Replying:
    """Commands that give the replies they were told to."""

    def __init__(self, answers):
        self._answers = iter(answers)

    def start(self, request):
        return next(self._answers)


@pytest.fixture
def noted(tmp_path):
    """noted(base, [(request, reply), ...]): the events that are noted of these, without times, ids and client."""

    numbers = itertools.count()

    def note(base, *pairs):
        path = tmp_path / f"served-{next(numbers)}.jsonl"
        recording = Recording(str(path), base, BLOCK)
        commands = RecordedCommands(Replying([reply for _, reply in pairs]), recording, "somebody")
        for request, _ in pairs:
            commands.start(request)
        recording.close()
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            assert is_valid(line, SCHEMA), line
        times = [line.pop("t") for line in lines[1:]]
        assert times == sorted(times)
        assert {line.pop("client") for line in lines[1:]} <= {"somebody #1"}
        load(path)
        return [{key: told for key, told in line.items() if key != "id"} for line in lines[1:]]

    return note


DONE = [replies.simple_reply(7)]


def data(offset, *parts, structured=True):
    """A reply to a READ, as Commands makes it."""
    if not structured:
        return [replies.simple_reply(7), *parts]
    reply = []
    for part in parts:
        reply += [replies.data_chunk_header(7, offset, len(part), done=False), part]
        offset += len(part)
    return [*reply, replies.done_chunk(7)]


def base_bytes(offset, length):
    return BASE.pread(offset, length)


READS = [  # (what is replied to a READ at 4096, what is noted of it)
    (data(4096, base_bytes(4096, 1024)), [["base", 1024]]),
    (data(4096, base_bytes(4096, 1024), structured=False), [["base", 1024]]),
    (data(4096, base_bytes(4096, 512), bytes(512)), [["base", 512], ["zero", 512]]),
    (data(4096, stamped(0xC0, 1, 5, 4096, 1024)), [["w5.c0", 1024]]),
    (data(4096, bytearray(stamped(0xC0, 1, 5, 4096, 1024))), [["w5.c0", 1024]]),
    (data(4096, memoryview(stamped(0xC0, 1, 5, 4096, 1024))), [["w5.c0", 1024]]),
    ([replies.hole_chunk(7, 4096, 1024, done=True)], [["zero", 1024]]),
    (
        [replies.hole_chunk(7, 4096, 512, done=False), *data(4608, base_bytes(4608, 512))],
        [["zero", 512], ["base", 512]],
    ),
    (
        [
            replies.data_chunk_header(7, 4096, 1024, done=False),
            FileSlice(0, 4096, 1024, None),
            replies.done_chunk(7),
        ],
        [["base", 1024]],
    ),
    (
        [
            replies.data_chunk_header(7, 4096, 1024, done=True),
            base_bytes(4096, 512),
            stamped(0xC0, 1, 5, 4608, 512),
        ],
        [["base", 512], ["w5.c0", 512]],
    ),
]


@pytest.mark.parametrize(("reply", "runs"), READS)
def test_of_a_read_it_is_noted_who_wrote_what(noted, reply, runs):
    written = write(5, 4096, 1024)
    events = noted(BASE, (written, DONE), (asked(C.READ, 4096, 1024), reply))
    assert events[2] == {"event": "invoke", "op": "read", "offset": 4096, "length": 1024}
    assert events[3] == {"event": "ok", "value": runs}


def test_a_write_is_noted_by_its_stamps(noted):
    events = noted(BASE, (write(5, 4096, 1024), DONE))
    assert events == [
        {"event": "invoke", "op": "write", "offset": 4096, "length": 1024, "value": "w5.c0"},
        {"event": "ok"},
    ]


OTHERS = [
    (asked(C.TRIM, 0, 1024, F.FUA), {"op": "trim", "offset": 0, "length": 1024, "flags": ["fua"]}),
    (
        asked(C.WRITE_ZEROES, 512, 512, F.NO_HOLE | F.FAST_ZERO),
        {"op": "zero", "offset": 512, "length": 512, "flags": ["no_hole", "fast"]},
    ),
    (asked(C.CACHE, 0, 4096), {"op": "cache", "offset": 0, "length": 4096}),
    (asked(C.BLOCK_STATUS, 100, 4096), {"op": "status", "offset": 512, "length": 3584}),
    (asked(C.FLUSH), {"op": "flush", "offset": 0, "length": 0}),
]


@pytest.mark.parametrize(("request_", "told"), OTHERS)
def test_every_kind_of_request_is_noted(noted, request_, told):
    assert noted(BASE, (request_, DONE))[0] == {"event": "invoke", **told}


def test_an_error_is_noted_by_its_name(noted):
    events = noted(BASE, (write(5, 0, 512), [replies.simple_reply(7, E.ENOSPC)]))
    assert events[1] == {"event": "error", "errno": "ENOSPC"}


def test_a_request_against_the_protocol_is_not_noted(noted):
    assert noted(BASE, (asked(C.READ, 0, 512, error=E.EINVAL), [replies.error_chunk(7, E.EINVAL)])) == []


STRANGE = {
    "without stamps": asked(C.WRITE, 0, payload=b"x" * 512),
    "with stamps of another place": asked(C.WRITE, 0, payload=stamped(0xC0, 1, 5, 512, 512)),
    "of two writes": asked(C.WRITE, 0, payload=stamped(0xC0, 1, 5, 0, 512) + stamped(0xC0, 1, 6, 512, 512)),
    "of part of a granule": asked(C.WRITE, 100, payload=b"x" * 1000),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_after_a_write_of_strangers_only_what_is_certain_is_noted(noted, strange):
    """A stamp, and what is zero by the overlay's own account; not what could be the strangers'."""
    read = asked(C.READ, 4096, 2048)
    mixed = [
        *data(4096, base_bytes(4096, 512), bytes(512), stamped(0xC0, 1, 9, 5120, 512))[:-1],
        replies.hole_chunk(7, 5632, 512, done=True),
    ]
    events = noted(BASE, (write(9, 5120, 512), DONE), (read, mixed), (strange, DONE), (read, mixed))
    assert events[3]["value"] == [["base", 512], ["zero", 512], ["w9.c0", 512], ["zero", 512]]
    assert events[4]["value"] == "stranger.1"
    assert len(events[4]["digest"]) == 8
    assert [length for _, length in events[7]["value"]] in ([512] * 4, [1024, 512, 512])
    assert {who for who, _ in events[7]["value"]} == {"*", "w9.c0", "zero"}
    assert len(events[7]["digest"]) == 8


@pytest.mark.parametrize("command", [C.TRIM, C.WRITE_ZEROES])
def test_zeroes_of_part_of_a_granule_make_what_is_read_uncertain(noted, command):
    read = (asked(C.READ, 4096, 512), data(4096, base_bytes(4096, 512)))
    assert noted(BASE, (asked(command, 0, 512), DONE), read)[-1]["value"] == [["base", 512]]
    assert noted(BASE, (asked(command, 0, 500), DONE), read)[-1]["value"] == [["*", 512]]


def test_zeroes_that_may_be_the_bases_are_not_said_to_be_written(noted):
    """And where the base would have to be waited for, that is not known."""
    read = (asked(C.READ, 0, 1024), data(0, bytes(512), b"x" * 512))
    bases = {
        "zero": BytesBase(bytes(512) + b"x" * BLOCK),
        "not zero": BytesBase(b"x" * BLOCK),
        "slow": PatternBase(BLOCK, latency_s=0.001),
        "all zero": MemoryBase(BLOCK),
    }
    first = {name: noted(base, read)[1]["value"][0] for name, base in bases.items()}
    assert first == {"zero": ["*", 512], "not zero": ["zero", 512], "slow": ["*", 512], "all zero": ["zero", 512]}


def test_what_is_torn_is_noted_with_what_is_wrong(noted):
    torn = stamped(0xC0, 1, 5, 0, 512)[:256] + stamped(0xC0, 1, 6, 0, 512)[256:]
    events = noted(BASE, (write(5, 0, 512), DONE), (write(6, 0, 512), DONE), (asked(C.READ, 0, 512), data(0, torn)))
    assert events[-1]["value"] == [["?", 512]]
    assert events[-1]["notes"] == ["0: torn: parts are w5.c0 and w6.c0's"]


def test_ends_of_reads_that_are_no_granules_are_left_out(noted):
    events = noted(BASE, (asked(C.READ, 100, 1000), data(100, base_bytes(100, 1000))))
    assert events[0]["offset"] == 512
    assert events[0]["length"] == 512
    assert events[1]["value"] == [["base", 512]]


def test_what_is_done_later_is_noted_when_it_is_done(tmp_path):
    export = make_export(PatternBase(16 * BLOCK, latency_s=0.001), ExportOptions(store="memory"))
    path = tmp_path / "served.jsonl"
    recording = Recording(str(path), export.base, BLOCK)
    agreement = Agreement(export.info, export.info.flags, False, ())
    commands = recording.commands(Commands(export, agreement), "somebody")
    later = commands.start(asked(C.READ, 0, GRANULE))
    assert isinstance(later, Later)
    commands.start(asked(C.FLUSH))
    later.run()
    recording.close()
    export.close()
    events = [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert events == ["invoke", "invoke", "ok", "ok"]
    assert load(path).value[0] == (("base", GRANULE),)


# The times of a batch, as they were noted: of two requests, whose threads may have been interrupted after they had
# looked at the clock. And what the file has of the batch: (time, request, event).
INTERRUPTED = {
    (10, 30, 20, 99): [(10, 1, "invoke"), (20, 2, "invoke"), (30, 1, "ok"), (99, 2, "ok")],
    # Later lines have been written: it was noted behind them, so it may stand there.
    (100, 150, 90, 140): [(99, 4, "invoke"), (100, 3, "invoke"), (140, 4, "ok"), (150, 3, "ok")],
    # Not all have as many digits.
    (980, 1010, 990, 1020): [(980, 5, "invoke"), (990, 6, "invoke"), (1010, 5, "ok"), (1020, 6, "ok")],
    (10010, 10020, 9990, 9995): [(9990, 8, "invoke"), (9995, 8, "ok"), (10010, 7, "invoke"), (10020, 7, "ok")],
    # The first of a batch.
    (10015, 10030, 10040, 10050): [(10020, 9, "invoke"), (10030, 9, "ok"), (10040, 10, "invoke"), (10050, 10, "ok")],
}


def test_lines_are_in_the_order_of_their_times_whoever_was_interrupted(tmp_path, monkeypatch):
    path = tmp_path / "served.jsonl"
    recording = Recording(str(path), BASE, BLOCK)
    commands = RecordedCommands(Replying(itertools.repeat(DONE)), recording, "somebody")
    for times in INTERRUPTED:
        monkeypatch.setattr("impl.server.record.monotonic_ns", iter(times).__next__)
        commands.start(asked(C.FLUSH))
        commands.start(asked(C.FLUSH))
        recording.write()
    recording.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    told = [(line["t"], line["id"], line["event"]) for line in lines]
    assert told == list(itertools.chain.from_iterable(INTERRUPTED.values()))


def test_what_many_connections_note_at_once_is_a_history(tmp_path):
    path = tmp_path / "served.jsonl"
    recording = Recording(str(path), BASE, BLOCK)

    def note(connection):
        commands = RecordedCommands(Replying(itertools.repeat(DONE)), recording, "somebody")
        for number in range(2000):
            commands.start(write(connection * 10000 + number, 0, GRANULE))

    threads = [threading.Thread(target=note, args=(connection,)) for connection in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recording.close()
    assert load(path).outcome == ["ok"] * 8000


def test_without_a_recording_nothing_of_it_is_in_the_way_or_even_loaded():
    look = "import sys, impl.server.command; print([name for name in sys.modules if name == 'impl.server.record'])"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_file_with_something_in_it_is_not_appended_to(tmp_path):
    path = tmp_path / "served.jsonl"
    path.write_text("mine\n", encoding="utf-8")
    with pytest.raises(StartError, match="there is something in this file already"):
        Recording(str(path), BASE, BLOCK)
    assert path.read_text(encoding="utf-8") == "mine\n"


def test_a_disk_that_is_full_ends_the_recording_and_not_the_server(caplog):
    recording = Recording("/dev/full", BASE, BLOCK)
    commands = RecordedCommands(Replying([DONE] * 5000), recording, "somebody")
    for _ in range(5000):
        commands.start(asked(C.FLUSH))
    recording.close()
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/full: recording ends here: No space left on device"
    ]


# The process


@pytest.mark.parametrize(("where", "said"), [("served.jsonl", "something in this file"), ("no/such", "No such file")])
def test_a_recording_that_cannot_be_made_is_refused_at_the_start(tmp_path, where, said):
    (tmp_path / "served.jsonl").write_text("mine\n", encoding="utf-8")
    command = [*SERVER, "-U", tmp_path / "s", "--record", tmp_path / where, "memory:1M"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert said in done.stderr


def test_a_server_that_stops_has_noted_all_that_it_answered(serve, tmp_path):
    path = tmp_path / "served.jsonl"
    server = serve("pattern:4M", "--record", str(path))
    with connect(server.uri) as one, connect(server.uri) as other:
        one.pwrite(0, stamped(1, 2, 3, 0, MIB))
        assert other.pread(0, MIB) == stamped(1, 2, 3, 0, MIB)
        one.trim(0, BLOCK)
        other.block_status(0, MIB)
        one.flush()
        other.pread(BLOCK - 512, 1024)
    assert server.stop() == 0
    history = load(path)
    assert history.op == ["write", "read", "trim", "status", "flush", "read"]
    assert history.outcome == ["ok"] * 6
    assert history.value[0] == "w3.1"
    assert history.value[1] == (("w3.1", MIB),)
    assert history.value[5] == (("zero", 512), ("w3.1", 512))
    assert len(set(history.client)) == 2


def test_a_server_that_is_killed_has_noted_what_was_answered_a_while_before(serve, tmp_path):
    """So the file can be read while the server runs, too."""
    path = tmp_path / "served.jsonl"
    server = serve("pattern:4M", "--record", str(path))
    with connect(server.uri) as client:
        client.pwrite(0, stamped(1, 2, 3, 0, MIB))
        eventually(lambda: path.read_bytes().count(b"\n") == 3, "a write and its answer in the file")
        server.kill()
    history = load(path, allow_truncated=True)
    assert (history.value[0], history.outcome[0]) == ("w3.1", "ok")
