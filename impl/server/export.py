"""An export: a base with its overlay, and what clients are told of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impl.base.interface import Base
from impl.errors import StartError
from impl.nbd.agreement import ExportInfo
from impl.nbd.constants import MAX_PAYLOAD_BYTES, TransmissionFlag
from impl.overlay.blocks import block_count
from impl.overlay.overlay import Overlay, never
from impl.overlay.rangelock import RangeLock
from impl.overlay.statemap import StateMap
from impl.overlay.store import FileStore, memory_store, temporary_store

if TYPE_CHECKING:
    from impl.server.record import Recording

READ_FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.CAN_MULTI_CONN
)
WRITE_FLAGS = (
    TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO | READ_FLAGS
)


def transmission_flags(read_only: bool) -> TransmissionFlag:
    """What an export can do, as its clients are told."""
    return READ_FLAGS | TransmissionFlag.READ_ONLY if read_only else WRITE_FLAGS


STORES: dict[str, Callable[[int, bool], FileStore]] = {"temporary": temporary_store, "memory": memory_store}


@dataclass(frozen=True)
class ExportOptions:
    """How an export is made, as the command line says it."""

    name: str = ""
    read_only: bool = False
    block_size: int = 4 << 10
    copy_on_read: Callable[[], bool] = never
    copy_on_cache: bool = False
    store: str = "temporary"
    reserve: bool = False
    record: str | None = None


@dataclass(frozen=True)
class Export:
    """What one name leads to."""

    info: ExportInfo
    overlay: Overlay
    base: Base
    store: FileStore
    recording: Recording | None = None

    def close(self) -> None:
        """Give the overlay's space and the base's descriptor back. Nothing may run on the overlay any more."""
        if self.recording is not None:
            self.recording.close()
        self.store.close()
        self.base.close()


def file_exists(path: str) -> Callable[[], bool]:
    """A switch: on while there is a file at `path`, asked at each read."""
    return lambda: os.access(path, os.F_OK)


def make_export(base: Base, options: ExportOptions) -> Export:
    """An export of `base`, its overlay empty. StartError when there is no room for its store or its map."""
    states = StateMap(block_count(base.size, options.block_size))
    store = STORES[options.store](base.size, options.reserve)
    overlay = Overlay(
        base=base,
        store=store,
        states=states,
        ranges=RangeLock(),
        block_size=options.block_size,
        cache_mode="cow" if options.copy_on_cache else base.cache_mode,
        copy_on_read=options.copy_on_read,
    )
    info = ExportInfo(
        name=options.name,
        size=base.size,
        description=base.description,
        flags=transmission_flags(options.read_only),
        block_preferred=min(options.block_size, MAX_PAYLOAD_BYTES),
    )
    try:
        info.check()
    except UnicodeError as error:
        raise StartError(f"an export cannot be called {options.name!r}: {error}") from None
    return Export(info, overlay, base, store, _recording(base, options))


def _recording(base: Base, options: ExportOptions) -> Recording | None:
    if options.record is None:
        return None
    # Few want one, and it takes a sixth of the time to start.
    from impl.server.record import Recording  # noqa: PLC0415

    return Recording(options.record, base, options.block_size)
