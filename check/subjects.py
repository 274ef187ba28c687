"""Everything that claims to be the device, behind one door: ask it a request of the model, get the model's reply.

Shapes:  a subject is made from a Setup, with a base whose reads fail where the setup says so, and with a store that
         can be made to fail. `ask` gives the reply of a request that was done; `device` is the model's own device
         for the same setup.
Errors:  `ask` raises OSError with the errno that the subject gave.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol

from check.serving import Serving, serve_export
from impl.base.interface import CacheMode as BaseCacheMode
from impl.client import Client, connect
from impl.extents import Extent, coalesce
from impl.nbd.agreement import ExportInfo
from impl.overlay.blocks import block_count
from impl.overlay.overlay import Overlay, never
from impl.overlay.rangelock import RangeLock
from impl.overlay.statemap import StateMap
from impl.overlay.store import Buffer, FileStore, memory_store
from impl.server.export import Export, transmission_flags
from model import device as model
from model.block import CacheMode, State
from model.extents import Extent as ModelExtent
from model.extents import clip


@dataclass(frozen=True)
class Setup:
    """A device to be made, and what its base is like."""

    base: bytes = field(repr=False)  # too long to be read
    block_size: int = 4096
    bad: frozenset[int] = frozenset()
    copy_on_read: bool = False
    cache_mode: CacheMode = CacheMode.IGNORE
    read_only: bool = False
    base_extents: tuple[ModelExtent, ...] | None = None

    def device(self) -> model.Device:
        """What the model makes of it."""
        return model.new_device(
            len(self.base),
            self.block_size,
            self.base,
            bad=self.bad,
            copy_on_read=self.copy_on_read,
            cache_mode=self.cache_mode,
            read_only=self.read_only,
            base_extents=self.base_extents,
        )


class Subject(Protocol):
    """A device under test."""

    validates: ClassVar[bool]  # Whether it refuses by itself what is outside the device, empty, or not permitted.
    has_store: ClassVar[bool]  # Whether there is a store to break.

    def ask(self, request: model.Request) -> model.Reply: ...

    def break_store(self, after_bytes: int | None) -> None:
        """Let the store be full once so many more bytes are written; None gives it room again."""

    def damage_store(self, damage: Damage | None) -> None:
        """Let the store break; None mends it."""

    def store_failures(self) -> Sequence[Operation]:
        """What the store has failed at until now, in order."""

    def state_of(self, block: int) -> State:
        """The state of one block, looked up inside."""

    def close(self) -> None: ...


@dataclass
class ScriptedBase:
    """A base in memory whose reads fail in the blocks that a setup names."""

    setup: Setup
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.setup.base)

    @property
    def description(self) -> str:
        """For clients that ask."""
        return "scripted"

    @property
    def cache_mode(self) -> BaseCacheMode:
        """Not asked: the setup says what the overlay does."""
        return "ignore"

    @property
    def extents_may_wait(self) -> bool:
        """Not asked: there is no server."""
        return False

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes, or EIO where any of them is bad."""
        self.reads.append((offset, length))
        size = self.setup.block_size
        if any(block in self.setup.bad for block in range(offset // size, (offset + length - 1) // size + 1)):
            raise OSError(errno.EIO, "a bad block of the base")
        return self.setup.base[offset : offset + length]

    def is_ready(self, offset: int, length: int) -> bool:
        """Even blocks are, odd ones are not: both of the server's ways are taken."""
        return offset // self.setup.block_size % 2 == 0

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        """The bytes of what is ready."""
        return self.pread(offset, length) if self.is_ready(offset, length) else None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As the setup says, or plain data."""
        if self.setup.base_extents is None:
            return iter([Extent(length, hole=False, zero=False)])
        found = clip(self.setup.base_extents, offset, offset + length)
        return coalesce(Extent(*extent) for extent in found)

    def prefetch(self, offset: int, length: int) -> None:
        """Nothing to bring closer."""

    def fileno(self) -> int | None:
        """No file."""
        return None

    def close(self) -> None:
        """Nothing to give up."""


class Operation(Enum):
    """What a store is asked to do, and may fail at."""

    READ = "read"
    WRITE = "write"
    ZERO = "zero"
    PUNCH = "punch"


@dataclass(frozen=True)
class Damage:
    """A disk of which a part is worn out: these operations go on for `after_bytes` in all, and from there give EIO."""

    operations: frozenset[Operation]
    after_bytes: int = 0


class FailingStore:
    """A store on a disk that can fill up, and break.

    Full, what fits is written, and what has space already can be written again. Space is counted in pages, as file
    systems do: writing to a page that has none takes one, punching gives it back. Broken, an operation that it
    concerns gets as far as the damage, and what it did until then is done.
    """

    PAGE = 512

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._backed: set[int] = set()
        self.left: int | None = None
        self._damage: Damage | None = None
        self._bytes_to_damage = 0
        self.failures: list[Operation] = []

    def damage(self, damage: Damage | None) -> None:
        """Break, from now on; None mends it."""
        self._damage = damage
        self._bytes_to_damage = 0 if damage is None else damage.after_bytes

    def pwrite(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write as far as there is room."""
        self._put(Operation.WRITE, offset, b"".join(buffers))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes as far as there is room."""
        self._put(Operation.ZERO, offset, bytes(length))

    def _put(self, operation: Operation, offset: int, data: bytes) -> None:
        sound = self._before_damage(operation, len(data))
        room = self._provide(offset, sound)
        if room:
            self._store.pwrite(offset, [data[:room]])
        if room < sound:
            self._fail(operation, errno.ENOSPC)
        if sound < len(data):
            self._fail(operation, errno.EIO)

    def punch_hole(self, offset: int, length: int) -> None:
        """Give the whole pages of the range back."""
        sound = self._before_damage(Operation.PUNCH, length)
        if sound:
            self._store.punch_hole(offset, sound)
        freed = self._backed.intersection(range(-(-offset // self.PAGE), (offset + sound) // self.PAGE))
        self._backed -= freed
        if self.left is not None:
            self.left += len(freed) * self.PAGE
        if sound < length:
            self._fail(Operation.PUNCH, errno.EIO)

    def _provide(self, offset: int, length: int) -> int:
        """Find space for the range, from its start on; how many bytes of it have space."""
        if length == 0:
            return 0
        for page in range(offset // self.PAGE, (offset + length - 1) // self.PAGE + 1):
            if page in self._backed:
                continue
            if self.left is not None:
                if self.left < self.PAGE:
                    return max(page * self.PAGE - offset, 0)
                self.left -= self.PAGE
            self._backed.add(page)
        return length

    def _before_damage(self, operation: Operation, length: int) -> int:
        """How many bytes of an operation go well."""
        if self._damage is None or operation not in self._damage.operations:
            return length
        sound = min(length, self._bytes_to_damage)
        self._bytes_to_damage -= sound
        return sound

    def _fail(self, operation: Operation, code: int) -> None:
        self.failures.append(operation)
        raise OSError(code, os.strerror(code))

    def pread(self, offset: int, length: int) -> bytes:
        """All of it or, damaged, nothing."""
        if self._before_damage(Operation.READ, length) < length:
            self._fail(Operation.READ, errno.EIO)
        return self._store.pread(offset, length)

    def prefetch(self, offset: int, length: int) -> None:
        """As the store."""
        self._store.prefetch(offset, length)

    def sync(self) -> None:
        """As the store."""
        self._store.sync()


OverlayClass = Callable[..., Overlay]


@dataclass
class Assembly:
    """An overlay and the parts of it that a test holds on to."""

    overlay: Overlay
    base: ScriptedBase
    store: FailingStore
    file: FileStore

    def break_store(self, after_bytes: int | None) -> None:
        """Let the store be full once so many more bytes are written; None gives it room again."""
        self.store.left = after_bytes

    def state_of(self, block: int) -> State:
        """The state of one block, as the model calls it."""
        return State(self.overlay.states.get(block, block + 1)[0])


def assemble(setup: Setup, overlay_class: OverlayClass = Overlay) -> Assembly:
    """The shipped overlay, or a mutant of it, over a scripted base and a store that can fail."""
    base = ScriptedBase(setup)
    file = memory_store(base.size)
    store = FailingStore(file)
    overlay = overlay_class(
        base=base,
        store=store,
        states=StateMap(block_count(base.size, setup.block_size)),
        ranges=RangeLock(),
        block_size=setup.block_size,
        cache_mode=setup.cache_mode.value,
        copy_on_read=(lambda: True) if setup.copy_on_read else never,
    )
    return Assembly(overlay, base, store, file)


class ModelSubject:
    """The model itself: the suite has to be true of it before it is asked of anything else."""

    validates: ClassVar[bool] = True
    has_store: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        self._device = setup.device()

    def ask(self, request: model.Request) -> model.Reply:
        """Apply the request; a refusal becomes the errno it stands for."""
        self._device, reply = model.apply(self._device, request)
        if isinstance(reply, model.Failed):
            raise OSError(model.ERRNO[reply.error], reply.error.name)
        return reply

    def break_store(self, after_bytes: int | None) -> None:
        """It has none."""

    def damage_store(self, damage: Damage | None) -> None:
        """It has none."""

    def store_failures(self) -> Sequence[Operation]:
        """None, ever."""
        return ()

    def state_of(self, block: int) -> State:
        """As the model has it."""
        return self._device.blocks[block].state

    def close(self) -> None:
        """Nothing to give up."""


class OverlaySubject:
    """The overlay, called directly."""

    validates: ClassVar[bool] = False
    has_store: ClassVar[bool] = True

    def __init__(self, setup: Setup, overlay_class: OverlayClass = Overlay) -> None:
        self.parts = assemble(setup, overlay_class)

    def ask(self, request: model.Request) -> model.Reply:
        """Call the method that the request stands for."""
        overlay = self.parts.overlay
        match request:
            case model.Read(offset, length):
                return model.Data(overlay.pread(offset, length))
            case model.Write(offset, data, _):
                overlay.write(offset, data)
            case model.Zero(offset, length, no_hole, fast):
                overlay.zero(offset, length, no_hole, fast)
            case model.Trim(offset, length):
                overlay.trim(offset, length)
            case model.Cache(offset, length):
                overlay.cache(offset, length)
            case model.Status(offset, length):
                return model.Extents(tuple(ModelExtent(*extent) for extent in overlay.extents(offset, length)))
            case model.Flush():
                overlay.flush()
        return model.Done()

    def break_store(self, after_bytes: int | None) -> None:
        """Let the store be full once so many more bytes are written; None gives it room again."""
        self.parts.break_store(after_bytes)

    def damage_store(self, damage: Damage | None) -> None:
        """Let the store break; None mends it."""
        self.parts.store.damage(damage)

    def store_failures(self) -> Sequence[Operation]:
        """What the store has failed at until now, in order."""
        return self.parts.store.failures

    def state_of(self, block: int) -> State:
        """As the overlay's map has it."""
        return self.parts.state_of(block)

    def close(self) -> None:
        """Give the store back."""
        self.parts.file.close()


class ServerSubject:
    """The overlay behind the server, asked in turn through several connections of our own client."""

    validates: ClassVar[bool] = True
    has_store: ClassVar[bool] = True

    def __init__(self, setup: Setup, connections: int = 2, overlay_class: OverlayClass = Overlay) -> None:
        self.parts = assemble(setup, overlay_class)
        info = ExportInfo(
            name="",
            size=len(setup.base),
            description="scripted",
            flags=transmission_flags(setup.read_only),
        )
        export = Export(info, self.parts.overlay, self.parts.base, self.parts.file)
        self._directory = tempfile.TemporaryDirectory(prefix="cowproof-subject-")
        self._serving: Serving = serve_export(export, f"{self._directory.name}/socket")
        self._clients = [connect(self._serving.uri) for _ in range(connections)]
        self._turn = 0

    def ask(self, request: model.Request) -> model.Reply:
        """Send the request on the next connection, and wait for the reply."""
        self._turn = (self._turn + 1) % len(self._clients)
        return ask_client(self._clients[self._turn], request)

    def break_store(self, after_bytes: int | None) -> None:
        """Let the store be full once so many more bytes are written; None gives it room again."""
        self.parts.break_store(after_bytes)

    def damage_store(self, damage: Damage | None) -> None:
        """Let the store break; None mends it."""
        self.parts.store.damage(damage)

    def store_failures(self) -> Sequence[Operation]:
        """What the store has failed at until now, in order."""
        return self.parts.store.failures

    def state_of(self, block: int) -> State:
        """As the overlay's map has it."""
        return self.parts.state_of(block)

    def close(self) -> None:
        """Disconnect, and stop the server."""
        for client in self._clients:
            client.disconnect()
        self._serving.stop()
        self.parts.file.close()
        self._directory.cleanup()


def ask_client(client: Client, request: model.Request) -> model.Reply:
    """One request of the model over one NBD connection."""
    match request:
        case model.Read(offset, length):
            return model.Data(client.pread(offset, length))
        case model.Write(offset, data, fua):
            client.pwrite(offset, data, fua=fua)
        case model.Zero(offset, length, no_hole, fast):
            client.zero(offset, length, no_hole=no_hole, fast=fast)
        case model.Trim(offset, length):
            client.trim(offset, length)
        case model.Cache(offset, length):
            client.cache(offset, length)
        case model.Status(offset, length):
            extents = client.block_status(offset, length)
            return model.Extents(tuple(ModelExtent(*extent) for extent in extents))
        case model.Flush():
            client.flush()
    return model.Done()
