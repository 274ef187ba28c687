"""What no common client does, or does not time: our own client, as a program, one task a run.

    python -m bench.own_client URI connect CLIENTS SECONDS
    python -m bench.own_client URI trim|zero|status|mix|scatter
    python -m bench.own_client URI fill PERCENT
    python -m bench.own_client URI places COUNT

prints one line of JSON: seconds, requests, bytes, and the latencies p50 and p99.

`connect` shakes hands and leaves, again and again, in as many processes. `trim` and `zero` go over the disk in pieces,
some in flight. `status` asks for all extents. Four prepare a disk: `mix` writes every other MiB, `scatter` one block in
16 MiB, so that extents alternate; `fill` writes so many of every four blocks, two of them apart from each other;
`places` writes so many blocks in all, at equal distances.

Units:   seconds, bytes.
Errors:  exit status 3, and why, when the server does not offer what is asked for; 1 when it fails.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from impl.client import Client, connect
from impl.client.client import STATUS_LENGTH_MAX_BYTES
from impl.client.link import Deadline, open_socket, shake_hands
from impl.client.uri import parse
from impl.nbd.client_handshake import ClientHandshake
from impl.nbd.constants import Command
from impl.nbd.wire import pack_request

CANNOT = 3
TIMEOUT_S = 300.0
IN_FLIGHT = 16
PIECE_BYTES = 32 << 20  # as much as the standard lets a client ask for without being told that it may
MIX_BYTES = 1 << 20
SCATTER_STRIDE_BYTES = 16 << 20
SCATTERED_BYTES = 64 << 10
# Of every four blocks, which come first when only some are written.
FILL_ORDER = (0, 2, 1, 3)


class CannotError(Exception):
    """The server does not offer it."""


def report(wall_s: float, latencies_s: list[float], bytes_: int = 0) -> dict[str, Any]:
    """What is printed."""
    ordered = sorted(latencies_s)
    return {
        "wall_s": wall_s,
        "requests": len(ordered),
        "bytes": bytes_,
        "p50_s": percentile(ordered, 0.50),
        "p99_s": percentile(ordered, 0.99),
    }


def percentile(ordered: list[float], part: float) -> float | None:
    """The least value that this part of all values does not exceed."""
    return ordered[math.ceil(part * len(ordered)) - 1] if ordered else None


# Requests on one connection.


def go_over(client: Client, send: Callable[[int, int], Future[Any]], step: int, length: int) -> dict[str, Any]:
    """A request at every `step` bytes of the disk; what was gone over counts, not what was asked for."""
    return {**go_to(client, send, range(0, client.size, step), length), "bytes": client.size}


def go_to(
    client: Client, send: Callable[[int, int], Future[Any]], offsets: Iterable[int], length: int
) -> dict[str, Any]:
    """A request at each offset, some in flight; their latencies."""
    began_s = time.perf_counter()
    latencies_s: list[float] = []
    waiting: deque[Future[Any]] = deque()
    for offset in offsets:
        if len(waiting) == IN_FLIGHT:
            waiting.popleft().result(TIMEOUT_S)
        sent_s = time.perf_counter()
        future = send(offset, min(length, client.size - offset))
        future.add_done_callback(partial(_note, latencies_s, sent_s))
        waiting.append(future)
    for future in waiting:
        future.result(TIMEOUT_S)
    return report(time.perf_counter() - began_s, latencies_s, len(latencies_s) * length)


def _note(latencies_s: list[float], sent_s: float, _: Future[Any]) -> None:
    latencies_s.append(time.perf_counter() - sent_s)


def trim(client: Client) -> dict[str, Any]:
    """All of the disk."""
    if not client.can_trim:
        raise CannotError("it does not offer to trim")
    return go_over(client, client.trim_async, PIECE_BYTES, PIECE_BYTES)


def zero(client: Client) -> dict[str, Any]:
    """All of the disk."""
    if not client.can_zero:
        raise CannotError("it does not offer to write zeroes")
    return go_over(client, client.zero_async, PIECE_BYTES, PIECE_BYTES)


def mix(client: Client) -> dict[str, Any]:
    """Random bytes into every other piece."""
    data = os.urandom(MIX_BYTES)
    return go_over(client, lambda offset, length: client.pwrite_async(offset, data[:length]), 2 * MIX_BYTES, MIX_BYTES)


def scatter(client: Client) -> dict[str, Any]:
    """Random bytes, far from each other."""
    data = os.urandom(SCATTERED_BYTES)
    return go_over(client, lambda at, length: client.pwrite_async(at, data[:length]), SCATTER_STRIDE_BYTES, len(data))


def fill(client: Client, percent: int) -> dict[str, Any]:
    """Random bytes into this part of every four blocks."""
    data = os.urandom(SCATTERED_BYTES)
    of_four = sorted(FILL_ORDER[: percent * len(FILL_ORDER) // 100])
    blocks = (first + at for first in range(0, client.size // len(data), len(FILL_ORDER)) for at in of_four)
    offsets = (block * len(data) for block in blocks if block < client.size // len(data))
    return go_to(client, lambda at, length: client.pwrite_async(at, data[:length]), offsets, len(data))


def places(client: Client, count: int) -> dict[str, Any]:
    """Random bytes into a block at each of so many places, all over the disk."""
    data = os.urandom(SCATTERED_BYTES)
    step = client.size // count
    offsets = range(0, count * step, step)
    return go_to(client, lambda at, length: client.pwrite_async(at, data[:length]), offsets, len(data))


def status(client: Client) -> dict[str, Any]:
    """All extents of the disk; `requests` is how many there are."""
    if not client.can_block_status:
        raise CannotError("it does not offer base:allocation")
    latencies_s, count, offset, was_hole = [], 0, 0, None
    began_s = time.perf_counter()
    while offset < client.size:
        sent_s = time.perf_counter()
        found = client.wait(client.block_status_async(offset, min(STATUS_LENGTH_MAX_BYTES, client.size - offset)))
        latencies_s.append(time.perf_counter() - sent_s)
        for extent in found:
            count += extent.hole != was_hole
            was_hole = extent.hole
            offset += extent.length
    return {**report(time.perf_counter() - began_s, latencies_s), "requests": count}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "trim": trim,
    "zero": zero,
    "mix": mix,
    "scatter": scatter,
    "fill": fill,
    "places": places,
    "status": status,
}


# Connections.


def shake_hands_for(uri: str, seconds: float, answer: Connection) -> None:
    """In a process of its own: connections one after the other, once told to begin; the latency of each."""
    target = parse(uri)
    goodbye = pack_request(Command.DISC, 0, 1, 0, 0)
    answer.recv()
    latencies_s = []
    end_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < end_s:
        with open_socket(target, Deadline(TIMEOUT_S)) as sock:
            shake_hands(sock, ClientHandshake(target.export), Deadline(TIMEOUT_S))
            latencies_s.append(time.perf_counter() - began_s)
            sock.sendall(goodbye)
    answer.send(latencies_s)


def connections(uri: str, clients: int, seconds: float) -> dict[str, Any]:
    """As many clients at once, each one connection after the other."""
    forking = multiprocessing.get_context("fork")
    pipes = [forking.Pipe() for _ in range(clients)]
    workers = [forking.Process(target=shake_hands_for, args=(uri, seconds, theirs)) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    for _, theirs in pipes:
        theirs.close()  # so that a worker that fails is seen as the end of its pipe
    began_s = time.perf_counter()
    for ours, _ in pipes:
        ours.send("begin")
    latencies_s = [latency_s for ours, _ in pipes for latency_s in ours.recv()]
    wall_s = time.perf_counter() - began_s
    for worker in workers:
        worker.join()
    return report(wall_s, latencies_s)


def main(uri: str, task: str, *arguments: str) -> int:
    """The exit status."""
    try:
        if task == "connect":
            clients, seconds = arguments
            done = connections(uri, int(clients), float(seconds))
        else:
            with connect(uri, timeout_s=TIMEOUT_S) as client:
                done = TASKS[task](client, *map(int, arguments))
    except CannotError as error:
        print(error, file=sys.stderr)
        return CANNOT
    except (OSError, EOFError) as error:
        print(error or "a connection ended", file=sys.stderr)
        return 1
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
