"""Files of histories: what is read, and that whatever is wrong is refused with its line.

Source:  specs/history.schema.json; check/history/format.py.
"""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schema import is_valid
from servers import ROOT

from check.history.format import CHUNK_BYTES, header_line, lines, load, save
from impl.errors import UsageError
from model.history import NEVER, OK, OPS, PENDING, History, Operation

SCHEMA = json.loads((ROOT / "specs" / "history.schema.json").read_text(encoding="utf-8"))

HEADER = (
    '{"format": "cowproof-history", "version": 1, "size": 1048576, "block_size": 65536, "granule": 512, '
    '"level": "request", "trim_reads_zero": true}'
)
EVENTS = [
    '{"t": 100, "client": "a", "id": 7, "event": "invoke", "op": "write", "offset": 0, "length": 65536, "value": "w7"}',
    '{"t": 180, "client": "a", "id": 7, "event": "ok"}',
    '{"t": 190, "client": "b", "id": 8, "event": "invoke", "op": "read", "offset": 0, "length": 131072}',
    '{"t": 250, "client": "b", "id": 8, "event": "ok", "value": [["w7", 65536], ["base", 4096], ["zero", 61440]]}',
    '{"t": 260, "client": "a", "id": 9, "event": "invoke", "op": "trim", "offset": 0, "length": 65536}',
    '{"t": 270, "client": "a", "id": 10, "event": "invoke", "op": "flush", "flags": ["fua"], "mood": "good"}',
    '{"t": 300, "client": "a", "id": 9, "event": "error", "errno": "EIO"}',
]
TOLD = [
    Operation("a", 7, "write", 0, 65536, 100, 180, OK, "w7"),
    Operation("b", 8, "read", 0, 131072, 190, 250, OK, (("w7", 65536), ("base", 4096), ("zero", 61440))),
    Operation("a", 9, "trim", 0, 65536, 260, 300, "EIO"),
    Operation("a", 10, "flush", 0, 0, 270, NEVER, PENDING, None, ("fua",)),
]


@pytest.fixture
def file(tmp_path):
    """file(line, ...): the path of a file of these lines."""

    def write(*written, end="\n"):
        path = tmp_path / "history.jsonl"
        path.write_bytes("\n".join(written).encode() + end.encode())
        return path

    return write


def test_a_file_is_read_as_the_format_has_it(file):
    history = load(file(HEADER, *EVENTS))
    assert list(history) == TOLD
    assert (history.size, history.block_size, history.granule, history.level) == (1 << 20, 65536, 512, "request")
    assert history.trim_reads_zero is True


def test_a_last_line_that_lacks_nothing_but_its_end_is_whole(file):
    assert list(load(file(HEADER, *EVENTS, end=""))) == TOLD


def test_blanks_around_an_object_mean_nothing(file):
    assert list(load(file(HEADER + "\r", *(f" {event} \r" for event in EVENTS)))) == TOLD


def test_a_file_that_is_larger_than_what_is_read_at_once_is_read_whole(file):
    blank = " " * 1000
    events = []
    for number in range(CHUNK_BYTES // 600):
        events.append(f'{{"t": {number}, "client": "a", "id": {number}, "event": "invoke", "op": "flush"}}{blank}')
    seen = []
    history = load(file(HEADER, *events), progress=lambda done, all_: seen.append((done, all_)))
    assert history.id == list(range(len(events)))
    assert len(seen) > 1
    assert seen[-1][0] == seen[-1][1]


def swapped(first, second):
    changed = list(EVENTS)
    changed[first], changed[second] = changed[second], changed[first]
    return changed


def changed(at, old, new):
    assert old in EVENTS[at]
    return [*EVENTS[:at], EVENTS[at].replace(old, new), *EVENTS[at + 1 :]]


W, R = EVENTS[0], EVENTS[3]
# (what is wrong, the events, the line that is wrong, what is said)
WRONG = [
    ("a line twice", [*EVENTS[:2], EVENTS[1], *EVENTS[2:]], 4, "expected one answer only, found a second one to 7"),
    ("an invocation twice", [EVENTS[0], *EVENTS], 3, "expected a new id, but client a has invoked 7 before"),
    ("an id again later", changed(4, '"id": 9', '"id": 7'), 6, "client a has invoked 7 before"),
    ("an answer before its invocation", swapped(0, 1), 2, "expected an invocation first, found an answer to 7"),
    ("an answer to nothing", EVENTS[1:], 2, "expected an invocation first, found an answer to 7 of client a"),
    ("an answer to another client", changed(1, '"a"', '"b"'), 3, "expected an invocation first"),
    ("times that go back", swapped(4, 5), 7, "expected events in the order of their times, found t 260 behind 270"),
    ("a negative time", changed(0, "100", "-1"), 2, "expected t, a whole number from 0"),
    ("a time in seconds", changed(0, "100", "0.1"), 2, "expected t, a whole number from 0"),
    ("a time that never comes", changed(6, "300", str(NEVER)), 8, "expected t, a whole number"),
    ("no time", changed(0, '"t"', '"time"'), 2, "expected t, a whole number from 0 to 4611686018427387903, found noth"),
    ("no client", changed(0, '"a"', "1"), 2, "expected client, a name, found '1'"),
    ("no id", changed(0, "7,", '"7",'), 2, "expected id, a whole number"),
    ("an id that is true", changed(0, "7,", "true,"), 2, "expected id, a whole number, found 'true'"),
    ("an unknown event", changed(1, '"ok"', '"okay"'), 3, "expected event invoke, ok, error, found"),
    ("an unknown op", changed(0, '"write"', '"scribble"'), 2, "expected op read, write, zero, trim, cache, flush"),
    ("an op that is a list", changed(0, '"write"', "[]"), 2, "expected op read"),
    ("a range that ends outside", changed(2, "131072", "1048577"), 4, "expected a range within 1048576 bytes"),
    ("a range that begins outside", changed(2, '"offset": 0', '"offset": -512'), 4, "expected a range within 1048576"),
    ("no length", changed(2, '"length"', '"size"'), 4, "expected length, a whole number, found nothing"),
    ("half a granule", changed(2, "131072", "131000"), 4, "expected a read of whole granules of 512 bytes"),
    ("a write without a value", changed(0, '"value"', '"data"'), 2, "expected value, a name for what is written"),
    ("a write of zeroes by name", changed(0, '"w7"', '"zero"'), 2, "expected value, a name for what is written"),
    (
        "two writes of one value",
        [W, W.replace("7,", "8,")],
        3,
        'expected a value that no other write has, found \'"w7"',
    ),
    ("a read without a value", changed(3, '"value"', '"data"'), 5, "expected value, a list of [who, bytes]"),
    (
        "runs that are too short",
        changed(3, "61440", "60928"),
        5,
        "expected a value of 131072 bytes, as the read has it",
    ),
    ("runs that are too long", changed(3, "61440", "61952"), 5, "expected a value of 131072 bytes"),
    ("a run of nothing", changed(3, '["zero"', '["w7", 0], ["zero"'), 5, "expected runs of whole granules in value"),
    ("a run of no bytes' writer", changed(3, '["base", 4096]', '["base"]'), 5, "expected [who, bytes] in value"),
    ("a run by a list", changed(3, '["base", 4096]', "[[], 4096]"), 5, "expected [who, bytes] in value"),
    (
        "a run that ends inside a granule",
        changed(3, "4096], [", '4000], ["x", 96], ['),
        5,
        "expected runs of whole gra",
    ),
    ("an error without its name", changed(6, "errno", "number"), 8, "expected errno, a name such as EIO"),
    ("an error that is none", changed(6, '"EIO"', '"ok"'), 8, "expected errno, a name such as EIO"),
    (
        "notes that are one",
        changed(3, '"value"', '"notes": "512: torn", "value"'),
        5,
        "expected notes, a list of lines",
    ),
    ("flags that are a name", changed(5, '["fua"]', '"fua"'), 7, "expected flags, a list of names"),
    ("a line that is no JSON", [*EVENTS[:3], "garbage", *EVENTS[3:]], 5, "expected a JSON object, found 'garbage'"),
    ("a line that is cut", [*EVENTS[:3], R[:40], *EVENTS[4:]], 5, "expected a JSON object, found"),
    ("a line that is empty", [*EVENTS[:3], "", *EVENTS[3:]], 5, "expected a JSON object, found an empty line"),
    ("a line that is a number", [*EVENTS[:3], "7", *EVENTS[3:]], 5, "expected a JSON object, found '7'"),
    ("two objects in a line", [EVENTS[0] + EVENTS[1], *EVENTS[2:]], 2, "expected a JSON object, found"),
    ("an object in two lines", ['{"t": 1,', '"client": "a"}'], 2, "expected a JSON object, found"),
    ("not a number", changed(0, "100", "NaN"), 2, "NaN is not JSON"),
    ("a header again", [HEADER, *EVENTS], 2, "expected t, a whole number"),
]


@pytest.mark.parametrize(("events", "line", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_refused_with_its_line(file, events, line, said):
    path = file(HEADER, *events)
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: line {line}: ")
    assert "\n" not in str(refused.value)


WRONG_HEADERS = [
    ("", "expected a header, "),
    ("[]", "expected a JSON object, found '[]'"),
    (EVENTS[0], 'expected a header with "format": "cowproof-history", found nothing'),
    (HEADER[:50], "the file ends in the middle of it"),
    (HEADER.replace("history", "hearsay"), 'expected a header with "format"'),
    (HEADER.replace('"version": 1', '"version": 2'), "expected version 1, found '2'"),
    (HEADER.replace('"size": 1048576', '"size": 0'), "expected size, a whole number of at least 1"),
    (HEADER.replace("65536", "1000"), "expected a block_size that is a multiple of the granule, 512, found 1000"),
    (HEADER.replace("request", "galaxy"), "expected level request, block, sector, found"),
    (HEADER.replace("true", '"yes"'), "expected trim_reads_zero, true or false, found"),
]


@pytest.mark.parametrize(("header", "said"), WRONG_HEADERS)
def test_a_file_that_begins_otherwise_is_refused(file, header, said):
    path = file(header, end="")
    for allow_truncated in (False, True):
        with pytest.raises(UsageError, match=re.escape(said)) as refused:
            load(path, allow_truncated)
        assert f"{path}: line 1: " in str(refused.value)


def test_wherever_a_file_ends_it_is_refused_or_has_lost_no_part_of_a_line(file):
    """Between two lines nothing is to be seen, unless the header says how many there are."""
    whole = "\n".join([HEADER, *EVENTS]).encode()
    path = file("")
    for length in range(len(HEADER) + 2, len(whole)):
        path.write_bytes(whole[:length])
        if b"\n" in whole[length - 1 : length + 1]:
            load(path)
            continue
        line = whole.count(b"\n", 0, length) + 1
        with pytest.raises(UsageError, match=f"line {line}: .*ends in the middle of it.*--allow-truncated"):
            load(path)
        assert len(load(path, allow_truncated=True)) <= len(TOLD)


@pytest.mark.parametrize("cut", [b"{", b'{"t": 1, "client": "\xc3', b"\xff"])
def test_a_cut_line_can_be_taken_as_the_end_of_the_file(file, cut):
    path = file(HEADER, *EVENTS)
    path.write_bytes(path.read_bytes() + cut)
    with pytest.raises(UsageError, match="line 9: "):
        load(path)
    assert list(load(path, allow_truncated=True)) == TOLD


def test_what_is_wrong_before_the_end_is_refused_though_the_end_may_be_cut(file):
    with pytest.raises(UsageError, match="line 3: expected a JSON object, found 'garbage'"):
        load(file(HEADER, EVENTS[0], "garbage", *EVENTS[1:]), allow_truncated=True)


def test_a_header_that_counts_the_events_shows_that_a_line_is_missing(file):
    header = HEADER.replace("{", f'{{"events": {len(EVENTS)}, ', 1)
    assert list(load(file(header, *EVENTS))) == TOLD
    with pytest.raises(UsageError, match="line 8: expected 7 events in all, as the header has it, found 6"):
        load(file(header, *EVENTS[:-1]))
    assert len(load(file(header, *EVENTS[:-1]), allow_truncated=True)) == 4


def test_bytes_that_are_no_text_are_refused_with_their_line(file):
    path = file(HEADER, *EVENTS)
    path.write_bytes(path.read_bytes().replace(b'"mood": "good"', b'"mood": "\xff"'))
    with pytest.raises(UsageError, match="line 7: expected UTF-8, found the byte 0xff"):
        load(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere: cannot be read: No such file"):
        load(tmp_path / "nowhere")


def test_what_is_not_known_of_a_read_is_left_out_of_it(file):
    """Less is then claimed than was seen: parts that are known, each for itself."""
    runs = '[["*", 512], ["base", 512], ["w7", 512], ["*", 512], ["*", 512], ["zero", 512]]'
    known = load(
        file(
            HEADER,
            EVENTS[0].replace("65536", "1536"),
            EVENTS[2].replace("131072", "3072"),
            R[: R.index("[[")] + runs + "}",
        )
    )
    assert list(known)[1:] == [
        Operation("b", 8, "read", 512, 1024, 190, 250, OK, (("base", 512), ("w7", 512))),
        Operation("b", 8, "read", 2560, 512, 190, 250, OK, (("zero", 512),)),
    ]


def test_what_was_wrong_with_what_was_read_is_kept_in_words(file, tmp_path):
    found = load(file(HEADER, *changed(3, '"value"', '"notes": ["512: torn", "other"], "value"')))
    assert found.notes == {("b", 8): ("512: torn", "other")}
    save(found, tmp_path / "again.jsonl")
    assert load(tmp_path / "again.jsonl").notes == found.notes


def test_neighbouring_runs_by_the_same_are_one(file):
    parts = changed(3, '["base", 4096]', '["base", 512], ["base", 3584]')
    assert list(load(file(HEADER, *parts))) == TOLD


def test_a_request_of_no_bytes_says_nothing(file):
    assert list(load(file(HEADER, *changed(4, "65536", "0")))) == [TOLD[0], TOLD[1], TOLD[3]]


def test_the_last_granule_of_a_device_may_be_short(file):
    header = HEADER.replace("1048576", "1000")
    event = W.replace('"offset": 0', '"offset": 512').replace("65536", "488")
    assert load(file(header, event)).length == [488]
    with pytest.raises(UsageError, match=r"line 2: expected a write of whole granules of 512 bytes, found 512\+400"):
        load(file(header, event.replace("488", "400")))


# What is written


@st.composite
def histories(draw):
    """Any history: times may be equal, answers may be missing."""
    history = History(
        size=8 * 512, level=draw(st.sampled_from(["request", "sector"])), base_is_zero=draw(st.booleans())
    )
    names = ["base", "zero", "?"]
    for number in range(draw(st.integers(0, 6))):
        op = draw(st.sampled_from(OPS))
        first, last = sorted(draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
        length = 0 if op == "flush" else (last - first + 1) * 512
        call = draw(st.integers(0, 5))
        outcome = draw(st.sampled_from([OK, PENDING, "EIO"]))
        ret = NEVER if outcome == PENDING else call + draw(st.integers(0, 3))
        value = None
        if op == "write":
            value = f"w{number}"
            names.append(value)
        elif op == "read" and outcome == OK:
            split = draw(st.integers(0, last - first)) * 512
            owners = draw(st.permutations(names))
            value = tuple((who, part) for who, part in zip(owners, (split, length - split), strict=False) if part)
        client = draw(st.sampled_from("ab"))
        history.append(
            Operation(client, number, op, 0 if op == "flush" else first * 512, length, call, ret, outcome, value)
        )
    return history


@settings(max_examples=200, deadline=None)
@given(histories())
def test_what_is_written_is_read_back(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("histories") / "history.jsonl"
    save(history, path)
    found = load(path)
    in_order = sorted(range(len(history)), key=lambda row: history.call[row])
    assert list(found) == [history.operation(row) for row in in_order]
    assert header_line(found) == header_line(history)
    for line in lines(history):
        assert is_valid(json.loads(line), SCHEMA), line


def test_the_examples_are_as_the_schema_has_them():
    for line in (HEADER, *EVENTS):
        assert is_valid(json.loads(line), SCHEMA), line


OF_ONE_LINE = [
    row for row in WRONG if row[0].startswith(("no ", "an unknown", "a write", "an error", "flags", "a run by"))
]


@pytest.mark.parametrize(("events", "line"), [row[1:3] for row in OF_ONE_LINE], ids=[row[0] for row in OF_ONE_LINE])
def test_what_is_wrong_with_a_line_by_itself_the_schema_refuses_too(events, line):
    assert not is_valid(json.loads(events[line - 2].replace("NaN", "null")), SCHEMA)
