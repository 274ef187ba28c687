"""Runs rules against a server, one after the other, and keeps what came of each.

Errors:  StartError, when a server cannot be started at all. Whatever goes wrong while a rule is tried, a server that
         hangs, or vanishes, or does not come up again among it, is that rule's failure.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from xml.etree import ElementTree

from check.conform import (
    concurrency,
    contexts,
    durability,
    extended,
    handshake,
    malformed,
    refusals,
    semantics,
    sizes,
    tls,
    transmission,
)
from check.conform.room import NoRoom
from check.conform.rule import RULES, Failure, NotApplicable, NotOffered, Rule, Verdict
from check.conform.subject import Settings, Subject, probe, started, there
from impl.client.uri import Target
from impl.errors import StartError, UsageError

# Their rules are registered as they are loaded.
MODULES = (
    handshake,
    tls,
    transmission,
    refusals,
    sizes,
    contexts,
    extended,
    semantics,
    malformed,
    concurrency,
    durability,
)
# In this order they are tried: what is begun with first, what takes longest last.
GROUPS = (
    "handshake",
    "tls",
    "transmission",
    "contexts",
    "status",
    "extended",
    "semantics",
    "malformed",
    "concurrency",
    "durability",
)
# Their rules start servers as they need them.
WITH_THEIR_OWN = ("semantics", "concurrency", "durability")


log = logging.getLogger("cowproof.conform")


@dataclass(frozen=True)
class Result:
    """What came of one rule."""

    rule: Rule
    verdict: Verdict
    detail: str
    seconds: float
    is_violation: bool  # the server breaks its word: what it MUST do, or is said to do, and does not


def chosen(patterns: Sequence[str]) -> list[Rule]:
    """The rules whose names fit one of the patterns, or all. UsageError for a pattern that fits none."""
    for pattern in patterns:
        if not any(fits(rule, pattern) for rule in RULES.values()):
            raise UsageError(f"no rule is called {pattern!r}: --list shows their names")
    rules = [rule for rule in RULES.values() if not patterns or any(fits(rule, pattern) for pattern in patterns)]
    return sorted(rules, key=lambda rule: GROUPS.index(rule.group))


def fits(rule: Rule, pattern: str) -> bool:
    """Whether a rule is meant: by name, pattern, or group."""
    return fnmatchcase(rule.name, pattern) or rule.group == pattern


def run(rules: Sequence[Rule], subject: Callable[[], Subject], say: Callable[[Result], None]) -> list[Result]:
    """Try rules on a server; each is told as it is done."""
    results = []
    for rule in rules:
        began_s, tried = time.monotonic(), subject()
        verdict, detail = verdict_of(rule, tried)
        is_violation = verdict is Verdict.FAIL and rule.binds(tried.settings.claims)
        results.append(Result(rule, verdict, detail, time.monotonic() - began_s, is_violation))
        say(results[-1])
    return results


def verdict_of(rule: Rule, subject: Subject) -> tuple[Verdict, str]:
    """What comes of a rule, and why. NoRoom if that could not be found out."""
    try:
        if rule.group in WITH_THEIR_OWN:
            rule.check(subject)
        else:
            with subject.apart() as tried:
                rule.check(tried)
    except Failure as failure:
        return Verdict.FAIL, str(failure)
    except NotOffered as reason:
        return Verdict.NOT_OFFERED, str(reason)
    except NotApplicable as reason:
        return Verdict.NOT_APPLICABLE, str(reason)
    except NoRoom:
        raise
    except StartError as error:
        return Verdict.FAIL, str(error)
    except OSError as error:  # of our own client: it hangs up on what it does not believe
        return Verdict.FAIL, str(error) or repr(error)
    except Exception as error:  # all other rules shall still be tried
        log.exception("rule %s", rule.name)
        return Verdict.NOT_APPLICABLE, f"the kit itself has failed, by what the server says or by a mistake: {error!r}"
    return Verdict.PASS, ""


@contextmanager
def subject_of(uri: str | None, command: str | None, wanted: Target, settings: Settings) -> Iterator[Subject]:
    """The server that was named, or those that are started."""
    if (uri is None) == (command is None):
        raise UsageError("expected a URI, or --start 'COMMAND with $unixsocket', and not both")
    if uri is not None:
        subject = there(uri, settings)
        probe(subject)
        yield subject
    else:
        assert command is not None
        with started(command, wanted, settings) as subject:
            yield subject


# How results are told.


def line(result: Result) -> str:
    """One result, for people."""
    told = f"{result.verdict.value:14}  {result.rule.name:36}  {result.rule.need.value:6}  {result.rule.section}"
    return "\n                ".join([told, *map(printable, result.detail.splitlines())])


def summary(results: Sequence[Result]) -> str:
    """How many came out how."""
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    told = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    violations = sum(result.is_violation for result in results)
    return f"{len(results)} rules: {told or 'none'}; {violations} of them broken that bind it"


def as_json(results: Sequence[Result], where: str) -> str:
    """All of it, for programs."""
    rules = [
        {
            "rule": result.rule.name,
            "need": result.rule.need.value,
            "section": result.rule.section,
            "says": result.rule.says,
            "verdict": result.verdict.value,
            "violation": result.is_violation,
            "detail": result.detail,
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    return json.dumps({"format": "cowproof-conformance", "version": 1, "server": where, "rules": rules}, indent=1)


def as_junit(results: Sequence[Result], where: str) -> str:
    """The same as JUnit's XML, which builds know how to show."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"cowproof conform {where}",
        tests=str(len(results)),
        failures=str(sum(result.verdict is Verdict.FAIL for result in results)),
        skipped=str(sum(result.verdict in (Verdict.NOT_OFFERED, Verdict.NOT_APPLICABLE) for result in results)),
    )
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", classname=result.rule.group, name=result.rule.name, time=f"{result.seconds:.3f}"
        )
        if result.verdict is Verdict.FAIL:
            first, *_ = result.detail.splitlines() or [""]
            shown = ElementTree.SubElement(case, "failure", message=printable(first))
            shown.text = "\n".join([result.rule.says, *map(printable, result.detail.splitlines())])
        elif result.verdict is not Verdict.PASS:
            ElementTree.SubElement(case, "skipped", message=printable(f"{result.verdict.value}: {result.detail}"))
    return ElementTree.tostring(suite, encoding="unicode")


def printable(text: str) -> str:
    """Neither XML nor a terminal has room for control characters, which a server may have said."""
    return "".join(character if character.isprintable() else "?" for character in text)
