"""What somebody who read the protocol's text has to say of each failure of a server: `judged.toml`."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources


@lru_cache
def judged() -> list[dict[str, str]]:
    """All there is: server and rule, both patterns, and what it says."""
    text = resources.files("check.conform").joinpath("judged.toml").read_text(encoding="utf-8")
    found: list[dict[str, str]] = tomllib.loads(text)["judged"]
    return found


def judgement(server: str, rule: str) -> str | None:
    """What is said of a failure, if anything; the first that fits."""
    for entry in judged():
        if fnmatchcase(server, entry["server"]) and fnmatchcase(rule, entry["rule"]):
            return entry["says"]
    return None
