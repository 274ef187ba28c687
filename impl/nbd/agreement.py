"""What the two sides have agreed on when the handshake ends; the same for the server and the client.

Source:  NBD protocol, "Transmission flags", "Size constraints", "Metadata querying".
Units:   sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from impl.nbd import wire
from impl.nbd.constants import (
    BLOCK_PREFERRED_DEFAULT_BYTES,
    MAX_PAYLOAD_BYTES,
    UINT64_MAX,
    TransmissionFlag,
)


class Phase(Enum):
    """Where a handshake is; it only ever moves downwards."""

    CLIENT_FLAGS = auto()  # the greeting is out (server) or awaited (client)
    OPTIONS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


@dataclass(frozen=True)
class ExportInfo:
    """An export, as the handshake tells of it. `flags` are without DF, which depends on the client."""

    name: str
    size: int
    description: str
    flags: TransmissionFlag
    block_min: int = 1
    block_preferred: int = BLOCK_PREFERRED_DEFAULT_BYTES
    block_max: int = MAX_PAYLOAD_BYTES

    @property
    def block_sizes(self) -> wire.BlockSizes:
        """The size constraints, as they travel."""
        return wire.BlockSizes(self.block_min, self.block_preferred, self.block_max)

    def check(self) -> None:
        """Assert what the standard asks of a server's export."""
        assert 0 <= self.size <= UINT64_MAX, self
        assert not wire.wrong_block_sizes(self.block_sizes), wire.wrong_block_sizes(self.block_sizes)
        assert not self.flags & TransmissionFlag.SEND_DF, self
        if self.flags & TransmissionFlag.SEND_FAST_ZERO:
            assert self.flags & TransmissionFlag.SEND_WRITE_ZEROES, self
        wire.pack_text(self.name)
        wire.pack_text(self.description)


@dataclass(frozen=True)
class Agreement:
    """How the transmission phase will be conducted. `flags` are as sent; `contexts` are ids of metadata contexts."""

    export: ExportInfo
    flags: TransmissionFlag
    structured: bool
    contexts: tuple[int, ...] = ()

    @property
    def payload_max(self) -> int:
        """The longest payload either side sends for one request, in bytes."""
        return min(self.export.block_max, MAX_PAYLOAD_BYTES)
