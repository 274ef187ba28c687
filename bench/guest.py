"""What a guest does to a disk that is being converted, in small: writes of a few sectors, several in flight.

    python -m bench.guest URI SIZE_BYTES

prints one line of JSON, as `bench.own_client` does. One block in eight is written to, in random order, and then a
quarter of these once more; every write begins and ends at any sector of its block, and covers no more than a quarter of
it. In the end everything is flushed. Two writes to one block are never in flight at once: what the disk holds in the
end depends on the plan alone, even behind a server that loses writes which race.

Units:   bytes, seconds. A block is what the overlays copy by default, whatever the server's own unit is.
Errors:  exit status 1 and one line when the server fails.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

from bench.own_client import TIMEOUT_S, report
from impl.client import connect

BLOCK_BYTES = 64 << 10
SECTOR_BYTES = 512
LENGTH_MAX_BYTES = 16 << 10
BLOCKS_OF_ONE_WRITTEN = 8
WRITTEN_OF_ONE_AGAIN = 4
IN_FLIGHT = 16
SEED = 1
# So few blocks that the second write to one could be sent while the first is in flight.
BLOCKS_MIN = 2 * IN_FLIGHT * BLOCKS_OF_ONE_WRITTEN


def plan(size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The writes, in order: where, and what."""
    blocks = size_bytes // BLOCK_BYTES
    assert blocks >= BLOCKS_MIN, f"{size_bytes} bytes are too few"
    rng = random.Random(SEED)
    once = rng.sample(range(blocks), blocks // BLOCKS_OF_ONE_WRITTEN)
    for block in [*once, *once[: len(once) // WRITTEN_OF_ONE_AGAIN]]:
        length = rng.randint(1, LENGTH_MAX_BYTES // SECTOR_BYTES) * SECTOR_BYTES
        start = rng.randint(0, (BLOCK_BYTES - length) // SECTOR_BYTES) * SECTOR_BYTES
        yield block * BLOCK_BYTES + start, rng.randbytes(length)


def modify(uri: str, size_bytes: int) -> dict[str, object]:
    """All of the plan, and a flush; how long it took."""
    writes = list(plan(size_bytes))
    latencies_s: list[float] = []
    waiting: deque[Future[None]] = deque()
    with connect(uri, timeout_s=TIMEOUT_S) as client:
        began_s = time.perf_counter()
        for offset, data in writes:
            if len(waiting) == IN_FLIGHT:
                waiting.popleft().result(TIMEOUT_S)
            future = client.pwrite_async(offset, data)
            future.add_done_callback(partial(_note, latencies_s, time.perf_counter()))
            waiting.append(future)
        for future in waiting:
            future.result(TIMEOUT_S)
        client.flush()
        return report(time.perf_counter() - began_s, latencies_s, sum(len(data) for _, data in writes))


def _note(latencies_s: list[float], sent_s: float, _: Future[None]) -> None:
    latencies_s.append(time.perf_counter() - sent_s)


def main(arguments: list[str]) -> int:
    """Do it; the exit status."""
    uri, size = arguments
    try:
        print(json.dumps(modify(uri, int(size))))
    except OSError as error:
        print(f"{uri}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
