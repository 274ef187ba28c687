"""The server that is tried: one that is there, or one that is started anew for whoever needs it fresh.

Errors:  StartError when a server that is to be started does not come up. NotApplicable where a rule needs a fresh one
         and there is only a URI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from check.conform.disk import VECTORS, Disk, Upstreams
from check.conform.link import Link, Unreachable, context_of
from check.conform.place import BASE, BASE_URI, Place, names
from check.conform.rule import Failure, NotApplicable
from impl.client import Client, connect
from impl.client.uri import Target, parse
from impl.errors import StartError
from impl.nbd.constants import Option, OptionReply

ANSWER_S = 10.0


def say_nothing(told: str) -> None:
    """For those who need not be told how far a rule has come."""


@dataclass(frozen=True)
class Settings:
    """How servers are tried.

    quick:  a part of what there is to try, for those who wait
    claims: what the server is said to do beyond the protocol; see `rule.Claim`
    keep:   a folder for what shows a failure
    say:    told how far a rule has come
    """

    quick: bool = False
    claims: frozenset[str] = frozenset()
    keep: Path | None = None
    say: Callable[[str], None] = say_nothing
    upstreams: Upstreams = field(default_factory=Upstreams)


@dataclass(frozen=True)
class Subject:
    """A server to be tried.

    target:   where it is; with a command, where it is once that has been started
    command:  how one is started, for a shell, with the names of `place`; None if it is there already
    """

    target: Target
    command: str | None = None
    settings: Settings = field(default_factory=Settings)

    def link(self) -> Link:
        """A connection, before a word was said."""
        return Link(self.target)

    def client(self) -> Client:
        """A connection in the transmission phase, with the best of what the server has."""
        return connect(self.target.uri, timeout_s=ANSWER_S)

    @contextmanager
    def fresh(self, disk: Disk = VECTORS) -> Iterator[Subject]:
        """The same kind of server, over a disk, with nothing written to it yet."""
        with self.place(disk) as place, place.running():
            yield replace(self, target=place.target)

    @contextmanager
    def place(self, disk: Disk = VECTORS) -> Iterator[Place]:
        """A folder in which the same kind of server can be started."""
        if self.command is None:
            raise NotApplicable("it needs a server that nobody has written to: --start 'COMMAND with $unixsocket'")
        place = Place(self.command, self.target, disk, self.settings.upstreams)
        try:
            yield place
        finally:
            place.remove()

    @contextmanager
    def apart(self) -> Iterator[Subject]:
        """One that no rule has tried before, if there can be one."""
        if self.command is None:
            yield self
        else:
            with self.fresh() as subject:
                yield subject

    def needs_its_disk(self) -> None:
        """NotApplicable unless a fresh server is over the disk that it is asked to be over."""
        if self.command is not None and not (names(self.command, BASE) or names(self.command, BASE_URI)):
            raise NotApplicable("it needs a server of a disk that it is told of: $base or $baseuri in the command")

    @property
    def has_slow_disks(self) -> bool:
        """Whether what lies under a fresh one is as slow as it is asked to be."""
        return self.command is not None and names(self.command, BASE_URI)


def there(uri: str, settings: Settings | None = None) -> Subject:
    """A server that runs already; StartError for secrets that are of no use."""
    target = parse(uri)
    context_of(target.tls)  # or each rule would blame the server for a file of ours
    return Subject(target, settings=settings or Settings())


def probe(subject: Subject) -> None:
    """Whether there is anybody, and TLS is spoken if and only if that is wanted; StartError says what to do."""
    try:
        with subject.link() as link:
            link.greet()
            answer = link.option(Option.LIST)
            speaks = answer.final == OptionReply.ERR_TLS_REQD or link.option(Option.STARTTLS).granted
            if answer.final == OptionReply.ERR_TLS_REQD and subject.target.tls is None:
                raise StartError("the server requires TLS: speak it, with --tls, or nbds:// in the URI")
            if subject.target.tls is not None and not speaks:
                raise StartError("the server has no TLS: leave --tls out, or write nbd:// in the URI")
    except Unreachable as failure:
        raise StartError(f"{subject.target.uri}: {failure}") from None
    except Failure:
        return  # which is for the rules to tell


@contextmanager
def started(command: str, wanted: Target | None = None, settings: Settings | None = None) -> Iterator[Subject]:
    """Servers of one's own, as they are needed; StartError if there cannot be one.

    wanted:  which export, and whether TLS is spoken
    """
    settings = settings or Settings()
    context_of(None if wanted is None else wanted.tls)  # as for `there`
    with settings.upstreams:
        subject = Subject(wanted or Target(), command, settings)
        with subject.fresh() as first:
            probe(first)
        yield subject
