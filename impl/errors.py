"""The kinds of error, never mixed.

The peer broke the protocol:     PeerError; an error reply, or a hard disconnect where the standard asks for one.
The world failed:                OSError with an errno, as the operating system raises it; the errno is replied.
The user asked for nonsense:     UsageError; one clear line and exit status 2.
We could not start to serve:     StartError; one clear line and exit status 1.
We have a bug:                   AssertionError, with the state in the message.
"""

from __future__ import annotations


class PeerError(Exception):
    """The other side of a connection sent what the NBD protocol forbids, and cannot be talked to any more."""


class UsageError(Exception):
    """An argument that makes no sense; the message names it, and says what would."""


class StartError(Exception):
    """The arguments make sense, but the machine cannot do it; the message says what, and why."""
