"""Promise P4: a request waits only for requests that overlap it; never for a slow base, or a disjoint range.

The base, and in some tests the store, stop where the test wants them to: no interleaving is awaited, each is chosen.
What must not happen while a request is held is shown by other requests that complete meanwhile.

Source: impl/server, impl/overlay; check/gates.py for the gates, check/mutants.py for what has to be found out.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from raw_nbd import RawClient

from check.gates import Gate, GatedBase, GatedStore
from check.mutants import NoSecondLookAtCopies, NoSecondLookAtWrites, NoSecondLookAtZeroes
from check.serving import serve_export
from check.subjects import ScriptedBase, Setup
from impl.base.memory import BytesBase
from impl.client import connect
from impl.nbd.agreement import ExportInfo
from impl.overlay.blocks import block_count
from impl.overlay.overlay import Overlay, never
from impl.overlay.rangelock import RangeLock
from impl.overlay.statemap import StateMap
from impl.overlay.store import memory_store
from impl.server.export import Export, ExportOptions, make_export, transmission_flags

pytestmark = pytest.mark.timeout(60)

BLOCK = 4096
BASE = bytes(1 + index % 251 for index in range(8 * BLOCK))
THREADS = 4
# How long a request that has to wait for nothing may take. It decides nothing while the server is right.
ANSWER_S = 5

# The scripted base is ready to give even blocks and not odd ones; so what is held is an odd block, by a worker.
HELD = BLOCK
PART_AT, PART = HELD + 100, b"\xf2" * 50
NEW = b"\xf1" * BLOCK


class Bench:
    """A server on an overlay with gates in its base and its store."""

    def __init__(
        self, path, overlay_class=Overlay, copy_on_read=False, cache_mode="ignore", threads=THREADS, grace_s=1
    ):
        self.base = GatedBase(Setup(BASE, BLOCK))
        self._file = memory_store(len(BASE))
        self.store = GatedStore(self._file)
        overlay = overlay_class(
            base=self.base,
            store=self.store,
            states=StateMap(block_count(len(BASE), BLOCK)),
            ranges=RangeLock(),
            block_size=BLOCK,
            cache_mode=cache_mode,
            copy_on_read=(lambda: True) if copy_on_read else never,
        )
        self.overlay = overlay
        self.path = path / "s"
        info = ExportInfo("", len(BASE), "", transmission_flags(False))
        self._serving = serve_export(Export(info, overlay, self.base, self._file), str(self.path), threads, grace_s)
        self._gates = []
        self._clients = []

    @property
    def server(self):
        """To be reached into."""
        return self._serving.server

    @property
    def thread(self):
        """What the server runs on."""
        return self._serving.thread

    def stop(self):
        """End it as SIGTERM would, and wait until it has gone."""
        self._serving.stop()

    def session(self):
        """That of the one client there is."""
        (session,) = self.server._sessions
        return session

    def raw_client(self):
        """One more connection, without the manners of `client`."""
        client = RawClient(self.path)
        self._clients.append(client.socket)
        return client

    def client(self):
        """One more connection."""
        client = connect(self._serving.uri, timeout_s=ANSWER_S)
        self._clients.append(client)
        return client

    def stop_in_base(self, request):
        """Send a request, and wait until it waits for the base; its future, and the gate."""
        gate = self.base.gate = Gate()
        return self._stop_at(gate, request)

    def stop_in_store(self, request):
        """Send a request, and wait until it is in the middle of writing, its range held; its future, and the gate."""
        gate = self.store.gate = Gate()
        return self._stop_at(gate, request)

    def _stop_at(self, gate, request):
        self._gates.append(gate)
        gate.shut()
        future = request()
        gate.wait_for_arrival()
        return future, gate

    def close(self):
        for gate in self._gates:
            gate.open()
        for client in self._clients:
            client.close()
        self._serving.stop()
        self._file.close()


@pytest.fixture
def bench(short_path):
    """bench(**parts): a Bench; one at a time, closed after the test."""
    with ExitStack() as stack:

        def make(*args, **kwargs):
            stack.close()
            made = Bench(short_path, *args, **kwargs)
            stack.callback(made.close)
            return made

        yield make


def with_part(block, part=PART):
    return block[:100] + part + block[100 + len(part) :]


# As many reads at once as there are threads, and no more.


class Turnstile(BytesBase):
    """A base whose reads wait until they are let through, all of those that wait at once."""

    def __init__(self, data):
        super().__init__(data)
        self._changed = threading.Condition()
        self._waiting = 0
        self._waves = 0
        self.most_at_once = 0

    def is_ready(self, offset, length):
        return False

    def pread(self, offset, length):
        with self._changed:
            self._waiting += 1
            self.most_at_once = max(self.most_at_once, self._waiting)
            wave = self._waves
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waves > wave, ANSWER_S)
        return super().pread(offset, length)

    def let_through(self, count):
        """Wait until `count` reads wait, and let them through."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting >= count, ANSWER_S), (
                f"{self._waiting} reads wait for the base, expected {count}"
            )
            assert self._waiting == count
            self._waiting = 0
            self._waves += 1
            self._changed.notify_all()


@contextmanager
def turnstile(path, threads):
    base = Turnstile(BASE)
    export = make_export(base, ExportOptions(block_size=BLOCK, store="memory"))
    serving = serve_export(export, str(path / "s"), threads)
    try:
        yield base, serving.uri
    finally:
        serving.stop()
        export.close()


@pytest.mark.parametrize(("threads", "reads"), [(4, 64), (16, 64), (1, 5), (4, 10), (4, 3)])
def test_reads_of_a_slow_base_run_as_many_at_once_as_there_are_threads(threads, reads, short_path):
    with turnstile(short_path, threads) as (base, uri), connect(uri, timeout_s=ANSWER_S) as client:
        ranges = [(number * 500, 100) for number in range(reads)]
        futures = [client.pread_async(*range_) for range_ in ranges]
        client.flush()  # the server has taken all that came before it
        waves = 0
        for done in range(0, reads, threads):
            base.let_through(min(threads, reads - done))
            waves += 1
        for (offset, length), future in zip(ranges, futures, strict=True):
            assert client.wait(future) == BASE[offset : offset + length]
        assert waves == -(-reads // threads)
        assert base.most_at_once == min(threads, reads)


def test_every_connection_has_threads_of_its_own(short_path):
    with turnstile(short_path, 2) as (base, uri), ExitStack() as stack:
        clients = [stack.enter_context(connect(uri, timeout_s=ANSWER_S)) for _ in range(3)]
        futures = [(client, client.pread_async(0, BLOCK)) for client in clients for _ in range(3)]
        for client in clients:
            client.flush()
        base.let_through(6)
        base.let_through(3)
        assert all(client.wait(future) == BASE[:BLOCK] for client, future in futures)


# What a request that waits for the base does not delay.

UNDELAYED = {
    "an unaligned write to another block, which waits for the base itself": lambda client: client.pwrite(
        3 * BLOCK + 1, b"x"
    ),
    "a write of a whole block": lambda client: client.pwrite(5 * BLOCK, NEW),
    "a write of the very same block, whole": lambda client: client.pwrite(HELD, NEW),
    "an unaligned write to the very same block": lambda client: client.pwrite(HELD + 1000, b"x"),
    "a read of another block": lambda client: client.pread(3 * BLOCK, BLOCK),
    "a read of the very same block": lambda client: client.pread(HELD, BLOCK),
    "a read of an allocated block": lambda client: client.pread(7 * BLOCK, BLOCK),
    "a trim of all the device": lambda client: client.trim(0, len(BASE)),
    "a zero of a part": lambda client: client.zero(5 * BLOCK + 1, 100),
    "a block status of all the device": lambda client: client.block_status(0, len(BASE)),
    "a cache of all the device": lambda client: client.cache(0, len(BASE)),
    "a flush": lambda client: client.flush(),
}


@pytest.mark.parametrize("same_connection", [True, False], ids=["same connection", "other connection"])
@pytest.mark.parametrize("request_", UNDELAYED.values(), ids=UNDELAYED)
def test_a_write_that_waits_for_the_base_does_not_delay(request_, same_connection, bench):
    made = bench()
    client = made.client()
    client.pwrite(7 * BLOCK, NEW)
    future, gate = made.stop_in_base(lambda: client.pwrite_async(PART_AT, PART))
    request_(client if same_connection else made.client())
    assert not future.done(), "acknowledged before the base was read"
    gate.open()
    client.wait(future)
    assert client.pread(PART_AT, len(PART)) == PART


def test_a_write_that_waits_for_the_base_does_not_delay_another_clients_handshake(bench):
    made = bench()
    future, gate = made.stop_in_base(lambda: made.client().pwrite_async(PART_AT, PART))
    other = made.client()
    assert other.pread(0, BLOCK) == BASE[:BLOCK]
    other.disconnect()
    assert not future.done()
    gate.open()
    assert future.result(ANSWER_S) is None


def test_a_client_that_leaves_while_its_write_waits_for_the_base_takes_nobody_with_it(bench):
    made = bench()
    leaver, other = made.client(), made.client()
    _, gate = made.stop_in_base(lambda: leaver.pwrite_async(PART_AT, PART))
    leaver.close()
    assert other.pread(0, BLOCK) == BASE[:BLOCK]
    gate.open()
    assert other.pread(HELD, BLOCK) in (BASE[HELD : HELD + BLOCK], with_part(BASE[HELD : HELD + BLOCK]))


# What a request that waits for its range does not delay: the requests behind it.

OVERLAPPING = {
    "read": lambda client: client.pread_async(HELD, BLOCK),
    "write": lambda client: client.pwrite_async(HELD, NEW),
    "unaligned write": lambda client: client.pwrite_async(HELD + 1, b"x"),
    "trim": lambda client: client.trim_async(HELD, BLOCK),
    "zero": lambda client: client.zero_async(HELD, BLOCK),
    "cache": lambda client: client.cache_async(HELD, BLOCK),
    "block status": lambda client: client.block_status_async(HELD, BLOCK),
}


@pytest.mark.parametrize("overlapping", OVERLAPPING.values(), ids=OVERLAPPING)
def test_what_waits_for_a_range_does_not_delay_a_disjoint_request_behind_it(overlapping, bench):
    """The one that holds the range is held in the store: as long as a disk takes, or a zero of gigabytes."""
    made = bench()
    writer, client = made.client(), made.client()
    writer.pwrite(HELD, NEW)
    held, gate = made.stop_in_store(lambda: writer.pwrite_async(HELD, NEW))
    waits = overlapping(client)
    assert client.pread(4 * BLOCK, BLOCK) == BASE[4 * BLOCK : 5 * BLOCK]
    assert not waits.done()
    gate.open()
    writer.wait(held)
    client.wait(waits)


def test_what_waited_for_a_range_does_not_wait_for_reads_of_a_slow_base_as_well(bench):
    made = bench()
    writer, client = made.client(), made.client()
    slow = [made.stop_in_base(lambda: client.pread_async(5 * BLOCK, 1)) for _ in range(THREADS)]
    held, gate = made.stop_in_store(lambda: writer.pwrite_async(HELD, NEW))
    waits = client.pwrite_async(HELD, NEW)
    client.flush()  # the server has taken it
    gate.open()
    writer.wait(held)
    assert not any(read.done() for read, _ in slow)
    client.wait(waits)


# A request that has read the base, and finds its block changed: what it must not do is put old bytes over new ones.


def part_beside_whole(bench, client, other):
    """A write of a part is merged into the whole block that was written meanwhile."""
    future, gate = bench.stop_in_base(lambda: client.pwrite_async(PART_AT, PART))
    other.pwrite(HELD, NEW)
    assert other.pread(HELD, BLOCK) == NEW, "acknowledged, and not to be seen"
    gate.open()
    client.wait(future)
    return with_part(NEW)


def part_beside_part(bench, client, other):
    """Two parts of one block are both there."""
    future, gate = bench.stop_in_base(lambda: client.pwrite_async(PART_AT, PART))
    other.pwrite(HELD + 2000, b"other")
    gate.open()
    client.wait(future)
    block = with_part(BASE[HELD : HELD + BLOCK])
    return block[:2000] + b"other" + block[2005:]


def part_beside_trim(bench, client, other):
    """What was trimmed does not come back with its neighbours."""
    future, gate = bench.stop_in_base(lambda: client.pwrite_async(PART_AT, PART))
    other.trim(HELD, BLOCK)
    assert other.pread(HELD, BLOCK) == bytes(BLOCK)
    gate.open()
    client.wait(future)
    return with_part(bytes(BLOCK))


def part_beside_zero(bench, client, other):
    """Nor what was zeroed, space and all."""
    future, gate = bench.stop_in_base(lambda: client.pwrite_async(PART_AT, PART))
    other.zero(HELD, BLOCK, no_hole=True)
    gate.open()
    client.wait(future)
    return with_part(bytes(BLOCK))


def tail_beside_whole(bench, client, other):
    """A write that ends in the block: its tail is what has been written meanwhile."""
    future, gate = bench.stop_in_base(lambda: client.pwrite_async(0, NEW + PART))
    other.pwrite(HELD, b"\xf3" * BLOCK)
    gate.open()
    client.wait(future)
    return PART + b"\xf3" * (BLOCK - len(PART))


def zero_of_part_beside_whole(bench, client, other):
    """Zeroes are merged as writes are."""
    future, gate = bench.stop_in_base(lambda: client.zero_async(PART_AT, len(PART)))
    other.pwrite(HELD, NEW)
    gate.open()
    client.wait(future)
    return with_part(NEW, bytes(len(PART)))


def trim_of_part_beside_trim(bench, client, other):
    """A trim of a part has nothing to do in a block that has been trimmed meanwhile."""
    future, gate = bench.stop_in_base(lambda: client.trim_async(PART_AT, len(PART)))
    other.trim(HELD, BLOCK)
    gate.open()
    client.wait(future)
    return bytes(BLOCK)


def read_beside_whole(bench, client, other):
    """Copy-on-read keeps nothing in a block that has been written meanwhile."""
    future, gate = bench.stop_in_base(lambda: client.pread_async(HELD, 10))
    other.pwrite(HELD, NEW)
    gate.open()
    assert client.wait(future) == BASE[HELD : HELD + 10], "the read was first: the write began while it waited"
    return NEW


def read_beside_part(bench, client, other):
    """Not even over bytes that the reader did not ask for."""
    future, gate = bench.stop_in_base(lambda: client.pread_async(HELD, 10))
    other.pwrite(PART_AT, PART)
    gate.open()
    assert client.wait(future) == BASE[HELD : HELD + 10]
    return with_part(BASE[HELD : HELD + BLOCK])


def read_beside_trim(bench, client, other):
    """Nor over zeroes."""
    future, gate = bench.stop_in_base(lambda: client.pread_async(HELD, 10))
    other.trim(HELD, BLOCK)
    gate.open()
    client.wait(future)
    return bytes(BLOCK)


def cache_beside_whole(bench, client, other):
    """A cache request changes nothing that can be read."""
    future, gate = bench.stop_in_base(lambda: client.cache_async(0, 3 * BLOCK))
    other.pwrite(HELD, NEW)
    gate.open()
    client.wait(future)
    return NEW


def cache_beside_trim(bench, client, other):
    """Nor brings back what was trimmed."""
    future, gate = bench.stop_in_base(lambda: client.cache_async(HELD, 1))
    other.trim(HELD, BLOCK)
    gate.open()
    client.wait(future)
    return bytes(BLOCK)


COPY_ON_READ, COPY_ON_CACHE = {"copy_on_read": True}, {"cache_mode": "cow"}
SCENARIOS = [  # (scenario, options of the overlay, the mutant that it has to find out)
    (part_beside_whole, {}, NoSecondLookAtWrites),
    (part_beside_part, {}, NoSecondLookAtWrites),
    (part_beside_trim, {}, NoSecondLookAtWrites),
    (part_beside_zero, {}, NoSecondLookAtWrites),
    (tail_beside_whole, {}, NoSecondLookAtWrites),
    (zero_of_part_beside_whole, {}, NoSecondLookAtZeroes),
    (trim_of_part_beside_trim, {}, NoSecondLookAtZeroes),
    (read_beside_whole, COPY_ON_READ, NoSecondLookAtCopies),
    (read_beside_part, COPY_ON_READ, NoSecondLookAtCopies),
    (read_beside_trim, COPY_ON_READ, NoSecondLookAtCopies),
    (cache_beside_whole, COPY_ON_CACHE, NoSecondLookAtCopies),
    (cache_beside_trim, COPY_ON_CACHE, NoSecondLookAtCopies),
]
NAMES = [row[0].__name__ for row in SCENARIOS]


class LostData(AssertionError):
    """The block does not hold what the requests, in some order, leave in it."""


def check_scenario(scenario, made, connections):
    clients = [made.client() for _ in range(connections)]
    expected = scenario(made, clients[0], clients[-1])
    for client in clients:
        if client.pread(HELD, BLOCK) != expected:
            raise LostData(scenario.__doc__)


@pytest.mark.parametrize("connections", [1, 2], ids=["one connection", "two connections"])
@pytest.mark.parametrize(("scenario", "options", "_"), SCENARIOS, ids=NAMES)
def test_nothing_acknowledged_is_lost(scenario, options, _, connections, bench):
    check_scenario(scenario, bench(**options), connections)


@pytest.mark.parametrize(("scenario", "options", "mutant"), SCENARIOS, ids=NAMES)
def test_an_overlay_that_does_not_look_again_is_found_out(scenario, options, mutant, bench):
    with pytest.raises(LostData):
        check_scenario(scenario, bench(overlay_class=mutant, **options), connections=2)


def test_a_part_that_was_acknowledged_before_the_whole_was_written_is_gone(bench):
    made = bench()
    client, other = made.client(), made.client()
    future, gate = made.stop_in_base(lambda: client.pwrite_async(PART_AT, PART))
    gate.open()
    client.wait(future)
    other.pwrite(HELD, NEW)
    assert client.pread(HELD, BLOCK) == NEW


# Several connections are one device.

CHANGES = [
    ("write", lambda client: client.pwrite(HELD, NEW), NEW),
    ("write with FUA", lambda client: client.pwrite(HELD, NEW, fua=True), NEW),
    ("write of a part", lambda client: client.pwrite(PART_AT, PART), with_part(BASE[HELD : HELD + BLOCK])),
    ("zero", lambda client: client.zero(HELD, BLOCK, no_hole=True), bytes(BLOCK)),
    ("trim", lambda client: client.trim(HELD, BLOCK), bytes(BLOCK)),
]


@pytest.mark.parametrize(("change", "expected"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_what_one_connection_was_told_is_done_every_other_reads(change, expected, bench):
    made = bench()
    writer, *readers = [made.client() for _ in range(4)]
    assert writer.can_multi_conn
    change(writer)
    for reader in (*readers, made.client()):
        assert reader.pread(HELD, BLOCK) == expected


def test_it_reads_so_while_every_connection_writes_and_checks_the_others(bench):
    """Each connection writes its number into its own 16 bytes of a block that all share, and tells the next one."""
    made = bench()
    clients = [made.client() for _ in range(4)]
    rounds = 40

    def write_rounds(own):
        for number in range(1, rounds + 1):
            clients[own].pwrite(HELD + 16 * own, number.to_bytes(16, "big"))
            found = clients[(own + 1) % 4].pread(HELD + 16 * own, 16)
            assert int.from_bytes(found, "big") == number, f"connection {own}, round {number}"

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write_rounds, own) for own in range(4)]:
            future.result()
    block = b"".join(rounds.to_bytes(16, "big") for _ in range(4))
    assert clients[0].pread(HELD, BLOCK) == block + BASE[HELD + len(block) : HELD + BLOCK]


def test_the_scripted_base_makes_a_worker_read_the_block_that_is_held():
    """What the tests above lean on."""
    base = ScriptedBase(Setup(BASE, BLOCK))
    assert not base.is_ready(HELD, BLOCK)
    assert base.is_ready(4 * BLOCK, BLOCK)
