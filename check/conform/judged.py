"""What somebody who read the protocol's text has to say of each failure of a server: by server, and rule.

Source:  NBD protocol, doc/proto.md; the sections are those that the rules name.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

# Server (a pattern), rule (a pattern): what it is.
JUDGED: dict[tuple[str, str], str] = {}


def judgement(server: str, rule: str) -> str | None:
    """What is said of a failure, if anything."""
    for (servers, rules), said in JUDGED.items():
        if fnmatchcase(server, servers) and fnmatchcase(rule, rules):
            return said
    return None
