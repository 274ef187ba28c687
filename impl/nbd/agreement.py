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
    UINT32_MAX,
    UINT64_MAX,
    TransmissionFlag,
)

# Flags of an export that are told only to those who have asked for what they need.
DEPENDING_ON_THE_CLIENT = TransmissionFlag.SEND_DF | TransmissionFlag.BLOCK_STATUS_PAYLOAD


class Phase(Enum):
    """Where a handshake is; it only ever moves downwards."""

    CLIENT_FLAGS = auto()  # the greeting is out (server) or awaited (client)
    OPTIONS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class Tls(Enum):
    """Whether a server speaks TLS ("TLS support": NOTLS, SELECTIVETLS without exports of its own, FORCEDTLS)."""

    OFF = "off"
    ON = "on"
    REQUIRE = "require"


@dataclass(frozen=True)
class ExportInfo:
    """An export, as the handshake tells of it. `flags` are without those that depend on the client."""

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
        assert not self.flags & DEPENDING_ON_THE_CLIENT, self
        if self.flags & TransmissionFlag.SEND_FAST_ZERO:
            assert self.flags & TransmissionFlag.SEND_WRITE_ZEROES, self
        wire.pack_text(self.name)
        wire.pack_text(self.description)


@dataclass(frozen=True)
class Agreement:
    """How the transmission phase will be conducted.

    flags:       as sent
    structured:  replies come in chunks, whichever header these have
    contexts:    ids of metadata contexts
    extended:    requests and replies have extended headers; then replies are structured, too
    """

    export: ExportInfo
    flags: TransmissionFlag
    structured: bool
    contexts: tuple[int, ...] = ()
    extended: bool = False

    def __post_init__(self) -> None:
        assert self.structured or not self.extended, self

    @property
    def payload_max(self) -> int:
        """The longest payload either side sends for one request, in bytes."""
        return min(self.export.block_max, MAX_PAYLOAD_BYTES)

    @property
    def length_max(self) -> int:
        """The longest range that a request has room for, in bytes."""
        return UINT64_MAX if self.extended else UINT32_MAX
