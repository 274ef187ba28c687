"""The vectors: they are what the model says, of the form that is promised, and the server answers them.

Source: specs/vectors/schema.json; check/conform/vectors.py.
"""

import json

import pytest
from json_schema import is_valid
from servers import ROOT

from check.conform import vectors
from check.conform.vectors import BLOCK, FOLDER, MISPLACED, SIZE, Shadow, byte, cases, files
from impl.client import NbdError, connect
from impl.nbd.constants import BLOCK_STATE, CONTEXT_IDS
from model import device as model
from model.device import Read, Trim, Zero

SCHEMA = json.loads((ROOT / "specs" / "vectors" / "schema.json").read_text(encoding="utf-8"))
BASE = bytes(1 + index % 251 for index in range(SIZE))
DOCUMENT = json.loads((FOLDER / "device.json").read_text(encoding="utf-8"))
VECTORS = DOCUMENT["vectors"]


def test_what_is_committed_is_what_the_model_says():
    for name, text in files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "python -m check.conform.vectors writes it anew"


def test_it_has_the_form_that_is_promised_and_nothing_else_has():
    for name in files():
        assert is_valid(json.loads((FOLDER / name).read_text(encoding="utf-8")), SCHEMA), name
    one = VECTORS[0]
    for wrong in (
        {**DOCUMENT, "version": 2},
        {**DOCUMENT, "vectors": []},
        {**DOCUMENT, "vectors": [{**one, "steps": []}]},
        {**DOCUMENT, "vectors": [{**one, "content": [["base", 0, 0]]}]},
        {**DOCUMENT, "vectors": [{**one, "content": [["old", 1]]}]},
        {**DOCUMENT, "vectors": [{**one, "setup": [{"command": "write", "offset": 0}]}]},
    ):
        assert not is_valid(wrong, SCHEMA)


def test_no_two_have_one_name():
    names = [vector["name"] for vector in VECTORS]
    assert len(set(names)) == len(names) == len(list(cases())) + len(MISPLACED)


def test_every_request_meets_every_state():
    """Of whole blocks and of parts, every kind of request, on a block in each state."""
    for what in ("read", "write", "write zeroes", "write zeroes with NO_HOLE", "trim", "cache", "block status"):
        for where in ("a whole block", "the middle of a block"):
            for state in "NAT":
                assert any(vector["name"] == f"{what}, {where}, {state}N" for vector in VECTORS), (what, where, state)


def test_a_shadow_that_disagrees_with_the_model_is_found_out():
    class Forgets(Shadow):
        def _note(self, request):
            if not isinstance(request, Zero):
                super()._note(request)

    shadow = Forgets(model.new_device(SIZE, BLOCK))
    shadow.apply(byte(1, 0, 10))
    with pytest.raises(AssertionError):
        shadow.apply(Zero(0, 5))


def test_trimmed_bytes_are_told_from_zeroes():
    shadow = Shadow(model.new_device(SIZE, BLOCK))
    for request in (byte(4, 1, 3), Zero(2, 1), Trim(BLOCK, BLOCK)):
        shadow.apply(request)
    assert shadow.runs(0, 6) == [("base", 1, 0), ("byte", 1, 4), ("zero", 1), ("byte", 1, 4), ("base", 2, 4)]
    assert shadow.runs(BLOCK - 1, 3) == [("base", 1, BLOCK - 1), ("trimmed", 2)]


def test_of_a_model_that_errs_other_vectors_come(monkeypatch):
    shipped = model.apply

    def errs(device, request):
        found, reply = shipped(device, request)
        return (found, model.Failed(model.Error.OUT_OF_RANGE)) if isinstance(request, Read) else (found, reply)

    monkeypatch.setattr(vectors.model, "apply", errs)
    name, states, requests = next(iter(cases()))
    assert vectors.vector(name, states, requests) != VECTORS[0]


# The server.


def bytes_of(runs):
    """What our server promises of these runs."""
    makers = {
        "base": lambda length, offset: BASE[offset : offset + length],
        "byte": lambda length, value: bytes([value]) * length,
        "zero": bytes,
        "trimmed": bytes,
    }
    return b"".join(makers[kind](*rest) for kind, *rest in runs)


COMMANDS = {"read": 0, "write": 1, "flush": 3, "trim": 4, "cache": 5, "write_zeroes": 6, "block_status": 7}
FLAGS = {"FUA": 1, "NO_HOLE": 2, "DF": 4, "REQ_ONE": 8, "FAST_ZERO": 16}


def play(client, request):
    """The answer of a server, as it stands in a vector."""
    offset, length = request.get("offset", 0), request.get("length", 0)
    flags = sum(FLAGS[flag] for flag in request.get("flags", ()))
    payload = bytes([request["byte"]]) * length if request["command"] == "write" else b""
    return client.wait(client.submit(COMMANDS[request["command"]], flags, offset, length, payload))


NUMBERS = {"EPERM": 1, "EINVAL": 22, "ENOSPC": 28, "ENOTSUP": 95}
ALLOCATION, STATES = CONTEXT_IDS["base:allocation"], CONTEXT_IDS[BLOCK_STATE]


def joined(extents):
    return [(length, (1 if hole else 0) | (2 if zero else 0)) for length, hole, zero in extents]


def agrees(reply, answer):
    """Whether a reply is this answer, exactly."""
    if reply.error:
        return reply.error == NUMBERS.get(answer.get("error"))
    if "error" in answer:
        return False
    if "data" in answer and bytes(reply.data) != bytes_of(answer["data"]):
        return False
    return "extents" not in answer or reply.statuses[ALLOCATION] == joined(answer["extents"])


@pytest.mark.parametrize("extended", [False, True], ids=["structured", "extended"])
def test_the_server_gives_the_first_of_the_answers_to_every_vector(extended, serve, tmp_path):
    (tmp_path / "base").write_bytes(BASE)
    # Each vector needs a fresh overlay: an export of its own, in a few servers.
    for first in range(0, len(VECTORS), 100):
        chosen = VECTORS[first : first + 100]
        server = serve(None, *(f"v{number}={tmp_path / 'base'}" for number in range(len(chosen))))
        for number, vector in enumerate(chosen):
            uri = f"nbd+unix:///v{number}?socket={server.socket}"
            with connect(uri, extended=extended, contexts=("base:allocation", BLOCK_STATE)) as client:
                check(client, vector)
        server.stop()


def test_the_server_gives_the_first_of_the_answers_on_a_read_only_disk(serve, tmp_path):
    (tmp_path / "base").write_bytes(BASE)
    server = serve(tmp_path / "base", "--readonly")
    with connect(server.uri, contexts=("base:allocation", BLOCK_STATE)) as client:
        for vector in json.loads((FOLDER / "read-only.json").read_text(encoding="utf-8"))["vectors"]:
            check(client, vector)


def check(client, vector):
    for request in vector["setup"]:
        assert play(client, request).error == 0, vector["name"]
    for step in vector["steps"]:
        reply = play(client, step["request"])
        assert agrees(reply, step["answers"][0]), (vector["name"], step, reply)
    assert client.pread(0, SIZE) == bytes_of(vector["content"]), vector["name"]
    reply = play(client, {"command": "block_status", "offset": 0, "length": SIZE})
    assert reply.statuses[ALLOCATION] == joined(vector["extents"]), vector["name"]
    told = "".join("NAT"[state] * -(-length // BLOCK) for length, state in reply.statuses[STATES])
    assert told == vector["states"], vector["name"]


def test_an_answer_that_is_another_is_not_taken_for_it(serve, tmp_path):
    (tmp_path / "base").write_bytes(BASE)
    server = serve(tmp_path / "base")
    with connect(server.uri) as client:
        read = play(client, {"command": "read", "offset": 0, "length": 4})
        assert agrees(read, {"data": [["base", 4, 0]]})
        for wrong in ({"data": [["base", 4, 1]]}, {"data": [["zero", 4]]}, {"error": "EINVAL"}):
            assert not agrees(read, wrong)
        status = play(client, {"command": "block_status", "offset": 0, "length": 4})
        assert agrees(status, {"extents": [[4, False, False]]})
        assert not agrees(status, {"extents": [[4, True, True]]})
        failed = play(client, {"command": "read", "offset": SIZE, "length": 4})
        assert agrees(failed, {"error": "EINVAL"})
        assert not agrees(failed, {"error": "ENOSPC"})
        assert not agrees(failed, {})
        with pytest.raises(NbdError):
            client.pread(SIZE, 4)
