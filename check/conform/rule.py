"""What a rule is, and what can come of it.

Shapes:  a rule is a function that returns where the server keeps it, and raises where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from check.conform.subject import Subject


class Failure(Exception):
    """The server does not do what the rule says: what it does instead."""


class Closed(Failure):
    """The server closed the connection, as it may where a client has broken a MUST of its own."""


class NotOffered(Exception):
    """The server does not have what the rule is about, and need not."""


class NotApplicable(Exception):
    """The rule cannot be tried here: why not, and what would help."""


class Verdict(Enum):
    """What came of a rule."""

    PASS = "pass"
    FAIL = "fail"
    NOT_OFFERED = "not offered"
    NOT_APPLICABLE = "not applicable"


class Need(Enum):
    """How binding a rule is, in the words of RFC 2119. A SHOULD that is not done may have its reasons.

    CLAIM:  the protocol does not ask for it; it binds those who say that they do it
    """

    MUST = "MUST"
    SHOULD = "SHOULD"
    CLAIM = "CLAIM"


# What a server may be said to do beyond the protocol: the last part of the names of the rules that hold it to that.
CLAIMS = ("sector", "block", "request", "zero-trim", "persistent")


Check = Callable[["Subject"], None]


@dataclass(frozen=True)
class Rule:
    """One thing that a server has to do.

    name:     with which it can be asked for alone; what is before the slash is its group
    section:  where the protocol says so
    says:     what it is, in a sentence
    """

    name: str
    need: Need
    section: str
    says: str
    check: Check

    @property
    def group(self) -> str:
        """The rules that it stands among."""
        return self.name.partition("/")[0]

    def binds(self, claims: Collection[str]) -> bool:
        """Whether a server that is said to do these things breaks its word by not doing this."""
        return self.need is Need.MUST or (self.need is Need.CLAIM and self.name.partition("/")[2] in claims)


RULES: dict[str, Rule] = {}


def add(name: str, need: Need, section: str, says: str, check: Check) -> None:
    """Have one more rule."""
    assert name not in RULES, name
    RULES[name] = Rule(name, need, section, says, check)


def rule(name: str, need: Need, section: str) -> Callable[[Check], Check]:
    """Make a function a rule; its docstring is what the rule says."""

    def register(check: Check) -> Check:
        assert check.__doc__, name
        add(name, need, section, check.__doc__.strip().splitlines()[0].rstrip("."), check)
        return check

    return register
