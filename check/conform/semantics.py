"""Rules of what requests do: the vectors, a rule for each kind of request, each vector on a server of its own."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial

from check.conform.disk import Disk, base_bytes
from check.conform.rule import Failure, Need, NotApplicable, NotOffered, add
from check.conform.subject import Subject
from check.conform.talk import NEEDED
from check.conform.vectors import PAGES_SIZE, SECTORS_SIZE, SIZE, read_only_vectors, vectors
from impl.client import Client, NbdError
from impl.nbd.constants import Command, CommandFlag, TransmissionFlag, os_errno
from impl.nbd.reply_reader import Reply

Json = Mapping[str, object]

COMMANDS = {
    "read": Command.READ,
    "write": Command.WRITE,
    "flush": Command.FLUSH,
    "trim": Command.TRIM,
    "cache": Command.CACHE,
    "write_zeroes": Command.WRITE_ZEROES,
    "block_status": Command.BLOCK_STATUS,
}
FLAGS_NEEDED = {"FUA": TransmissionFlag.SEND_FUA, "FAST_ZERO": TransmissionFlag.SEND_FAST_ZERO}
QUICK_STEP = 10
REFUSALS = "refusals"
ERRORS = {
    "EIO": errno.EIO,
    "EINVAL": errno.EINVAL,
    "ENOSPC": errno.ENOSPC,
    "ENOTSUP": errno.ENOTSUP,
    "EPERM": errno.EPERM,
}
SAYS = {
    "read": "A read returns what was written last, zeroes where zeroes were, and else the base",
    "write": "A write changes the bytes of its range, and no other",
    "flush": "A flush changes nothing",
    "trim": "A trim changes no byte outside of its range",
    "cache": "A cache changes nothing",
    "write_zeroes": "Zeroes are written to their range, and nowhere else; what is refused changes nothing",
    "block_status": "Extents begin where they were asked for, and say zero only of what reads as zeroes",
}


@lru_cache
def by_rule(size: int) -> dict[str, list[Json]]:
    """The vectors, by the kind of the first request that they are about; those that bind nobody apart."""
    found: dict[str, list[Json]] = {}
    for vector in vectors(size):
        is_must = vector["need"] == Need.MUST.value
        command = str(_request(_list(vector["steps"])[0])["command"])
        found.setdefault(command if is_must else REFUSALS, []).append(vector)
    return found


def check_vectors(subject: Subject, kind: str) -> None:
    """Play all vectors of a kind; the first that fails is told."""
    offered, size = 0, size_for(subject)
    chosen = by_rule(size)[kind][:: QUICK_STEP if subject.settings.quick else 1]
    for number, vector in enumerate(chosen):
        subject.settings.say(f"{number} of {len(chosen)}")
        with subject.fresh(Disk(size)) as server:
            try:
                with server.client() as client:
                    if _is_offered(client, vector):
                        offered += 1
                        _play(client, vector, size)
            except OSError as error:
                raise Failure(f"{vector['name']}: {error or type(error).__name__}") from None
    if not offered:
        raise NotOffered(f"no {kind.upper()}")


def size_for(subject: Subject) -> int:
    """Of which size the disk has to be: some servers serve whole sectors only, or pages."""
    subject.needs_its_disk()
    for size in (SIZE, SECTORS_SIZE, PAGES_SIZE):
        with subject.fresh(Disk(size)) as server, server.client() as client:
            if client.size == size and size % client.block_min == 0:
                return size
            told = f"the device has {client.size} bytes, its base {size}; the smallest block is {client.block_min}"
    raise NotApplicable(told)


def check_read_only(subject: Subject) -> None:
    """Play the vectors of a disk that nobody may write to."""
    size = size_for(subject)
    for vector in read_only_vectors(size):
        with subject.fresh(Disk(size)) as server, server.client() as client:
            if not client.read_only:
                raise NotOffered("the export can be written to")
            if _is_offered(client, vector, is_refused=True):
                _play(client, vector, size)


def _is_offered(client: Client, vector: Json, *, is_refused: bool = False) -> bool:
    """Whether all its requests may be made; `is_refused`: a write, too, where it is refused."""
    return all(_offers(client, request, is_refused) for request in _requests(vector))


def _offers(client: Client, request: Json, is_refused: bool) -> bool:
    command = COMMANDS[str(request["command"])]
    place = _number(request.get("offset", 0)) | _number(request.get("length", 0))
    if place % client.block_min:
        return False
    flags = [FLAGS_NEEDED[str(flag)] for flag in _list(request.get("flags", [])) if flag in FLAGS_NEEDED]
    needed = [*flags, *([NEEDED[command]] if command in NEEDED else [])]
    if command == Command.BLOCK_STATUS and not client.can_block_status:
        return False
    if command == Command.WRITE and client.read_only and not is_refused:
        return False
    return all(client.flags & flag for flag in needed)


def _requests(vector: Json) -> Iterable[Json]:
    for part in ("setup", "steps"):
        for item in _list(vector[part]):
            yield _request(item) if part == "steps" else _json(item)


def _play(client: Client, vector: Json, size: int) -> None:
    """Setup, steps, and what is there in the end."""
    name = vector["name"]
    for item in _list(vector["setup"]):
        reply = _ask(client, _json(item))
        if reply.error:
            raise Failure(f"{name}: to begin with, {_told(_json(item))}: error {reply.error}")
    is_as_expected = True
    for item in _list(vector["steps"]):
        request, answers = _request(item), [_json(answer) for answer in _list(_json(item)["answers"])]
        reply = _ask(client, request)
        chosen = next((answer for answer in answers if not _mismatch(client, request, reply, answer)), None)
        if chosen is None:
            raise Failure(f"{name}: {_told(request)}: {_mismatch(client, request, reply, answers[0])}")
        is_as_expected &= "unspecified" in chosen or ("error" in chosen) == ("error" in answers[0])
        if not is_as_expected:
            return  # legal, and what follows presumes another answer
    try:
        found = client.pread(0, size)
    except NbdError as error:
        raise Failure(f"{name}: in the end, the disk cannot be read: {error}") from None
    wrong = _wrong_bytes(found, vector["content"])
    if wrong:
        raise Failure(f"{name}: in the end, {wrong}")


def _ask(client: Client, request: Json) -> Reply:
    command = COMMANDS[str(request["command"])]
    flags = 0
    for flag in _list(request.get("flags", [])):
        flags |= CommandFlag[str(flag)]
    offset, length = _number(request.get("offset", 0)), _number(request.get("length", 0))
    payload = bytes([_number(request["byte"])]) * length if command == Command.WRITE else b""
    return client.wait(client.submit(command, flags, offset, length, payload))


def _mismatch(client: Client, request: Json, reply: Reply, answer: Json) -> str:
    """Why a reply is not this answer; empty if it is."""
    if "unspecified" in answer:
        return ""
    if "error" in answer:
        expected = str(answer["error"])
        found = os_errno(reply.error) if reply.error else 0
        return "" if found == ERRORS[expected] else f"error {found}, expected {expected}"
    if reply.error:
        return f"error {reply.error} ({reply.message}), expected success"
    if "data" in answer:
        return _wrong_bytes(bytes(reply.data), answer["data"])
    if "extents" in answer or "legal_extents" in answer:
        return _wrong_extents(client, request, reply)
    return ""


def _wrong_bytes(found: bytes, runs: object) -> str:
    """Where bytes are not what the runs say; empty if they are. What was trimmed may be anything."""
    at = 0
    for run in _list(runs):
        kind, length, *more = _list(run)
        count = _number(length)
        part = found[at : at + count]
        expected = part if kind == "trimmed" else _bytes_of(str(kind), count, [_number(number) for number in more])
        if part != expected:
            first = next(index for index in range(count) if part[index : index + 1] != expected[index : index + 1])
            got = part[first : first + 1].hex() or "nothing"
            return f"byte {at + first} is {got}, expected {expected[first]:02x} ({kind})"
        at += count
    return "" if len(found) == at else f"{len(found)} bytes, expected {at}"


def _bytes_of(kind: str, count: int, more: Sequence[int]) -> bytes:
    """What a run of bytes consists of."""
    if kind == "base":
        return base_bytes(more[0] + count)[more[0] :]
    return bytes([more[0] if kind == "byte" else 0]) * count


def _wrong_extents(client: Client, request: Json, reply: Reply) -> str:
    """Why extents are not legal: what they say zero of has to read as zeroes."""
    extents = next(iter(reply.statuses.values()))
    offset, end = _number(request["offset"]), _number(request["offset"]) + _number(request["length"])
    for length, status in extents:
        stop = min(offset + length, client.size)
        if status & 2 and any(client.pread(offset, stop - offset)):
            return f"[{offset}, +{length}) is said to be zero, and is not"
        if offset >= end:
            return f"an extent begins at {offset}, beyond the range that was asked about"
        offset += length
    return ""


def _told(request: Json) -> str:
    flags = " with " + ", ".join(map(str, _list(request["flags"]))) if "flags" in request else ""
    place = f" [{request['offset']}, +{request['length']})" if "offset" in request else ""
    return f"{request['command']}{place}{flags}"


def _request(step: object) -> Json:
    return _json(_json(step)["request"])


def _json(value: object) -> Json:
    assert isinstance(value, dict)
    return value


def _list(value: object) -> Sequence[object]:
    assert isinstance(value, list | tuple)
    return value


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


for _command, _says in SAYS.items():
    add(f"semantics/{_command}", Need.MUST, f"NBD_CMD_{_command.upper()}", _says, partial(check_vectors, kind=_command))
add(
    f"semantics/{REFUSALS}",
    Need.SHOULD,
    "Error values; Request types",
    "What is beyond the end, or of no bytes, is answered as it should be, and changes nothing",
    partial(check_vectors, kind=REFUSALS),
)
add(
    "semantics/read-only",
    Need.MUST,
    "NBD_FLAG_READ_ONLY",
    "A read-only disk is read as it is, and whatever would change it is an error",
    check_read_only,
)
