"""The clients that do the work of a row, each a process of its own: nbdcopy, fio with its nbd engine, and our own.

What a client costs is told beside what the server does: fio takes 8 to 20 us a request, which is often the limit.

Source:  nbdcopy(1); fio(1), whose JSON has times in ns (clat_ns) and ms (runtime).
Units:   seconds and bytes.
Errors:  ClientError when it fails, CannotError when the server does not offer what it needs, each with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import own_client
from bench.own_client import CannotError
from check.live.servers import ROOT

LIMIT_S = 600.0
# The Debian package of each.
PACKAGES = {"nbdcopy": "libnbd-bin", "fio": "fio"}
OWN = (sys.executable, "-m", "bench.own_client")


class ClientError(Exception):
    """It failed; why, in one line."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client did. `client_s`: its processor time."""

    wall_s: float
    requests: int = 0
    bytes: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    client_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """A process that ended as it should."""

    output: str
    wall_s: float
    cpu_s: float


def run(command: Sequence[str]) -> Done:
    """A client, and what it and its children took."""
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, process_group=0
        )
        timer = threading.Timer(LIMIT_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            output = process.stdout.read().decode(errors="replace")
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - began_s
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
            if process.stdout is not None:
                process.stdout.close()
        said.seek(0)
        _judge(command, process.returncode, said.read().decode(errors="replace"))
    return Done(output, wall_s, usage.ru_utime + usage.ru_stime)


def _judge(command: Sequence[str], status: int, said: str) -> None:
    if status:
        line = " / ".join(line for line in said.splitlines() if line.strip())[-300:] or "it said nothing"
        if status == own_client.CANNOT and list(command[: len(OWN)]) == list(OWN):
            raise CannotError(line)
        raise ClientError(f"{os.path.basename(command[0])} ended with status {status}: {line}")


# nbdcopy


def copy(source: str, destination: str, connections: int, size_bytes: int) -> Outcome:
    """A whole disk, from or to a server."""
    done = run(["nbdcopy", f"--connections={connections}", source, destination])
    return Outcome(done.wall_s, bytes=size_bytes, client_s=done.cpu_s)


# fio


@dataclass(frozen=True, slots=True)
class Load:
    """Random requests.

    kind:        randread, randwrite or randrw
    each_block:  none falls into a block of this size by chance: offsets are its multiples
    requests:    how many, on all connections together; 0, as many as there are in the time
    once:        every block of the disk once, in random order, each connection a part of the disk
    """

    kind: str
    length_bytes: int
    depth: int = 1
    connections: int = 1
    each_block_bytes: int = 0
    requests: int = 0
    once: bool = False


def fio_command(uri: str, load: Load, seconds: float, size_bytes: int) -> list[str]:
    """Where nothing else limits it, it runs for some seconds. Offsets are the same for every server."""
    options: dict[str, object] = {
        "name": "bench",
        "ioengine": "nbd",
        "uri": uri,
        "rw": load.kind,
        "bs": load.length_bytes,
        "iodepth": load.depth,
        "numjobs": load.connections,
        "randseed": 1,
        "percentile_list": "50:99",
        "unified_rw_reporting": 1,
        "output-format": "json",
    }
    if load.each_block_bytes:
        options["blockalign"] = load.each_block_bytes
    if load.once:
        part = size_bytes // load.connections
        options |= {"size": part, "offset_increment": part}
    else:
        options |= {"size": size_bytes}
        options |= (
            {"number_ios": max(1, load.requests // load.connections)}
            if load.requests
            else {"runtime": f"{round(seconds * 1000)}ms"}
        )
    flags = ["--thread", "--group_reporting"]
    if not load.once:
        flags += ["--norandommap", *["--time_based"] * (not load.requests)]
    return ["fio", *(f"--{name}={value}" for name, value in options.items()), *flags]


def parse_fio(text: str) -> Outcome:
    """Of its JSON, which may stand behind messages."""
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0]
        found: dict[str, Any] = job["mixed"]
        percentiles = found["clat_ns"].get("percentile", {})
        p50_ns, p99_ns = percentiles.get("50.000000"), percentiles.get("99.000000")
        outcome = Outcome(
            wall_s=found["runtime"] / 1000,
            requests=found["total_ios"],
            bytes=found["io_bytes"],
            p50_s=None if p50_ns is None else p50_ns / 1e9,
            p99_s=None if p99_ns is None else p99_ns / 1e9,
        )
    except (ValueError, KeyError, IndexError) as error:
        raise ClientError(f"fio's output is not as expected: {error!r}") from None
    if job.get("error") or not outcome.requests or not outcome.wall_s:
        raise ClientError(f"fio did nothing: error {job.get('error')}, {outcome.requests} requests")
    return outcome


def random_requests(uri: str, load: Load, seconds: float, size_bytes: int) -> Outcome:
    """fio's own clock says how long they took: its start and end do not count."""
    done = run(fio_command(uri, load, seconds, size_bytes))
    found = parse_fio(done.output)
    return Outcome(found.wall_s, found.requests, found.bytes, found.p50_s, found.p99_s, done.cpu_s)


# Our own


def own(uri: str, task: str, *arguments: object) -> Outcome:
    """See `bench.own_client`; its own clock counts."""
    done = run([*OWN, uri, task, *map(str, arguments)])
    return Outcome(**json.loads(done.output), client_s=done.cpu_s)
