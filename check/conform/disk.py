"""What a server is started over: a disk as a file, and the same disk over NBD, as slow as a rule wants it.

Units:   sizes in bytes; latencies in milliseconds.
Errors:  StartError when our own server, which serves the disk over NBD, does not come up; NoRoom.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from check.conform.room import temporary_folder
from check.conform.vectors import SIZE
from check.live.programs import SEED
from check.live.servers import serving_base, uri_of
from impl.base.pattern import pattern


@lru_cache
def base_bytes(size: int = SIZE) -> bytes:
    """The base of the vectors."""
    return bytes(1 + index % 251 for index in range(size))


@dataclass(frozen=True)
class Disk:
    """One disk; with `latency_ms`, reads of it over NBD take that long, and up to `jitter_ms` more."""

    size: int = SIZE
    is_pattern: bool = False
    latency_ms: int = 0
    jitter_ms: int = 0

    def content(self) -> bytes:
        """All its bytes."""
        return pattern(SEED, 0, self.size) if self.is_pattern else base_bytes(self.size)

    @property
    def name(self) -> str:
        """The pattern, as `cowproof serve` knows it."""
        assert self.is_pattern
        return f"pattern:{self.size}?seed={SEED}&latency={self.latency_ms}ms&jitter={self.jitter_ms}ms"


VECTORS = Disk()


class Upstreams:
    """Servers of disks, each started when it is first asked for; nobody can write to them, so all may share them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._uris: dict[Disk, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def _folder(self) -> Path:
        return self._stack.enter_context(temporary_folder())

    def uri(self, disk: Disk) -> str:
        """Where it is served."""
        if disk not in self._uris:
            place = self._folder / str(len(self._uris))
            place.mkdir()
            self._uris[disk] = uri_of(self._stack.enter_context(serving_base(_named(disk, place), place)))
        return self._uris[disk]


def _named(disk: Disk, folder: Path) -> str:
    if disk.is_pattern:
        return disk.name
    path = folder / "disk"
    path.write_bytes(disk.content())
    return str(path)
