"""docs/conformance.md, made of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from check.conform.judged import judgement
from check.conform.rule import Verdict
from check.conform.run import Result, chosen

MARKS = {Verdict.PASS: "yes", Verdict.FAIL: "**no**", Verdict.NOT_OFFERED: "-", Verdict.NOT_APPLICABLE: "."}
DETAIL_LINES_MAX = 16
NOT_LOOKED_AT = "Nobody has looked at this yet."

Found = Mapping[str, Sequence[Result] | str]
Shown = Mapping[str, tuple[str, Sequence[str]]]  # of each server, how it is started, and what it claims

HEAD = """\
# Conformance

`cowproof conform` holds any NBD server, in whatever language, to the
[protocol](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): some hundred rules, each with the
section that has it, each tried by itself. This page says how to hold yours to it, and what came of the servers that
Debian has.

## Your server

Python 3.11 or newer has to be there, beside whatever yours is made of. `pip install '.[check]'` in a checkout gives
the command; yours is started by a shell, as you would start it, and told by variables where to listen and what to
serve.

    cargo build --release                               # or: go build, make, ...
    nbd='exec target/release/mynbd --unix $unixsocket $base'
    cowproof conform --quick --start "$nbd"             # a minute: a line for each rule, and what is wrong
    cowproof conform --start "$nbd"                     # all of it, for CI: exit status 1 if a MUST is broken
    cowproof conform --start "$nbd" --only status/one   # one failure alone; `alone:` at the end tells how
    cowproof conform --start "$nbd" --junit nbd.xml     # or --json nbd.json, for programs
    cowproof conform --start 'exec mynbd -u $unixsocket --backing $baseuri'   # overlays: races need a slow base
    cowproof conform --start "$nbd" --claim persistent --claim sector        # more than the protocol asks for
    cowproof conform nbd://localhost                    # what listens on TCP, and may be written over
    pytest -p check.conform.pytest_plugin --nbd-start "$nbd"   # each rule as a test; or nbd_start in pyproject.toml

`$base` is a file of 17,385 bytes, sometimes more, that nobody minds being written to; `$baseuri` is the same disk
over NBD. With `$overlay`, a file that is kept when the server is started again, and `$base` itself, writes are looked
for after `kill -9`; and where strace(1) is installed, it is seen whether what is written to files is synced.
`cowproof conform --list` shows all rules, `--help` the rest. Whoever wants no Python on the other side of the socket
has the semantics as JSON: `specs/vectors/*.json`, described by `schema.json` there, needs a JSON parser and a socket.

Tried on three servers that none of Debian's packages has, with the second line changed and nothing else: rust-nbd
0.3.1 (Rust; a `main` of 25 lines around it), go-nbd of July 2024 and gonbdserver of 2017 (both Go). Read beside the
text, what failed came to seven faults that break a MUST. rust-nbd: unknown options are hung up on; INFO and GO are
not there. go-nbd: unknown client flags are not hung up on; any name is known once INFO was asked of another.
gonbdserver: unknown client flags, too; WRITE_ZEROES is advertised, and has the number of an older draft; the error of
a read that is far beyond the end has data behind it. What the kit had asked too much of, or not seen, was mended.

## How to read this

**yes**: it is so. **no**: it is not, and below is what happens instead. **-**: the server does not offer what the
rule is about, and need not. **.**: it could not be tried, such as what outlives a server whose writes do not.

*MUST* and *SHOULD* are the protocol's. *CLAIM* is not in it: that binds those who say that they do it, and is tried
of no other, but for `concurrency/zero-trim`: whoever's trims read as zeroes is shown where they do not. The extended
headers are an experimental branch of the protocol. A rule that passes says what was tried, and not that there is no
other way to break it; races, and input that makes no sense, are found by trying often, and a server may pass once and
fail the next time.
"""


def page(found: Found, shown: Shown, versions: Sequence[str]) -> str:
    """The whole page."""
    plain, secure = [name for name in found if "TLS" not in name], [name for name in found if "TLS" in name]
    lines = [HEAD, "## Results", "", f"{', '.join(versions)}. Made by `python -m check.conform.results -o FILE`.", ""]
    lines += _started(found, shown)
    lines += ["", *_table(plain, found)]
    if secure:
        lines += ["", "Through TLS:", "", *_table(secure, found)]
    lines += ["", "## What fails, and what the text says"]
    for name, results in found.items():
        if not isinstance(results, str):
            lines += _failures(name, results)
    return "\n".join(lines) + "\n"


def _started(found: Found, shown: Shown) -> Iterator[str]:
    yield "| server | started as | claims | MUST | SHOULD |"
    yield "|---|---|---|---|---|"
    for name, results in found.items():
        command, claims = shown[name]
        started = f"`{command.replace('|', chr(92) + '|')}`"
        counts = [results, ""] if isinstance(results, str) else [_broken(results, need) for need in ("MUST", "SHOULD")]
        yield f"| {name} | {started} | {', '.join(claims)} | {' | '.join(counts)} |"


def _broken(results: Sequence[Result], need: str) -> str:
    """How many rules are kept, of those that could be tried."""
    tried = [result for result in results if result.rule.need.value == need]
    kept = sum(result.verdict is Verdict.PASS for result in tried)
    broken = sum(result.verdict is Verdict.FAIL for result in tried)
    return f"{kept} of {kept + broken}"


def _table(names: Sequence[str], found: Found) -> Iterator[str]:
    """A row for each rule that was tried, a column for each server."""
    columns = {name: {one.rule.name: one for one in of} for name in names if not isinstance(of := found[name], str)}
    yield f"| rule | | section | {' | '.join(columns)} |"
    yield f"|---|---|---|{'---|' * len(columns)}"
    for rule in chosen(()):
        if any(rule.name in column for column in columns.values()):
            marks = [MARKS[column[rule.name].verdict] if rule.name in column else "" for column in columns.values()]
            yield f"| {rule.name} | {rule.need.value} | {rule.section} | {' | '.join(marks)} |"


def _failures(name: str, results: Sequence[Result]) -> Iterator[str]:
    failed = [result for result in results if result.verdict is Verdict.FAIL]
    yield ""
    yield f"### {name}"
    yield ""
    if not failed:
        yield "Nothing."
    for result in failed:
        lines = result.detail.splitlines()
        left_out = ["..."] if len(lines) > DETAIL_LINES_MAX else []
        yield f"**{result.rule.name}** ({result.rule.need.value}). {result.rule.says}."
        yield ""
        yield "```"
        yield from [*lines[:DETAIL_LINES_MAX], *left_out]
        yield "```"
        yield ""
        yield judgement(name, result.rule.name) or NOT_LOOKED_AT
        yield ""
