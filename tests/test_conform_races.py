"""The kit on requests that are in flight together: servers that lose writes are found out, each by the rule that names
what it loses them to; and the levels that a server is said to keep.
"""

import threading

import pytest
from conform_servers import InProcess, failed, serving
from servers import need

from check import mutants
from check.conform.concurrency import PART
from check.conform.rule import RULES, Need
from check.conform.run import chosen
from check.conform.subject import Settings, started
from check.live.programs import BLOCK_BYTES
from impl.overlay.overlay import Overlay
from impl.overlay.statemap import NOT_ALLOCATED
from impl.server import export
from impl.server.commands import Commands

OVERLAYS = {}


def overlay(rule, **options):
    """An overlay that breaks a rule, in an export with options."""

    def register(made):
        OVERLAYS[made.__name__] = (rule, made, options)
        return made

    return register


@overlay("concurrency/read", copy_on_read=lambda: True)
class KeepsWhatItReads(mutants.NoSecondLookAtCopies):
    """Copy-on-read, over what was written meanwhile."""


@overlay("concurrency/cache", copy_on_cache=True)
class KeepsWhatItCaches(mutants.NoSecondLookAtCopies):
    """Copy-on-cache, over what was written meanwhile."""


class ForgetsMeanwhile(Overlay):
    """What there is of blocks that had to be fetched is forgotten."""

    def forget(self, fetched):
        for block in fetched or ():
            self.states.fill(block, block + 1, NOT_ALLOCATED)


@overlay("concurrency/write")
class WritesAndForgets(ForgetsMeanwhile):
    """Stores the block that it has read, and what was done to it meanwhile is gone."""

    def write(self, offset, data, fetched=None):
        if offset % BLOCK_BYTES == PART[0]:  # not where it is the other one of a pair
            self.forget(fetched)
        super().write(offset, data, fetched)


@overlay("concurrency/zero")
class ZeroesAndForgets(ForgetsMeanwhile):
    def trim(self, offset, length, fetched=None):
        Overlay.zero(self, offset, length, fetched=fetched)

    def zero(self, offset, length, no_hole=False, fast=False, fetched=None):
        if offset % BLOCK_BYTES == PART[0]:
            self.forget(fetched)
        super().zero(offset, length, no_hole, fast, fetched)


@overlay("concurrency/trim")
class TrimsAndForgets(ForgetsMeanwhile):
    def trim(self, offset, length, fetched=None):
        self.forget(fetched)
        super().trim(offset, length, fetched)


@overlay("concurrency/zero-trim")
class BringsBackWhatWasTrimmed(Overlay):
    def trimmed(self):
        """The blocks that were; an overlay is copied for each request, its base is not."""
        return vars(self.base).setdefault("trimmed", set())

    def trim(self, offset, length, fetched=None):
        super().trim(offset, length, fetched)
        if length == BLOCK_BYTES:
            self.trimmed().add(offset // BLOCK_BYTES)

    def _kept_part(self, block, fetched, from_, to):
        if block in fetched and block in self.trimmed():
            return memoryview(fetched[block])[from_:to]
        return super()._kept_part(block, fetched, from_, to)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_server_that_loses_writes_fails_by_the_rule_that_names_it_and_by_no_other(name, monkeypatch, short_path):
    rule, made, options = OVERLAYS[name]
    monkeypatch.setattr(export, "Overlay", made)
    # A trim may be lost to any of them.
    not_others = {rule, "concurrency/zero-trim"}
    others = [other for other in chosen(["concurrency"]) if other.need is Need.MUST and other.name not in not_others]
    with serving(short_path / "s", **options) as target:
        named = InProcess(target, settings=Settings(), options=options)
        assert "no order leaves there" in failed(named, [RULES[rule]])[rule]
        assert failed(InProcess(target, settings=Settings(quick=True), options=options), others) == {}


NBDKIT = "exec nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri cow-on-read=true cow-on-cache=true"
QEMU = (
    "qemu-img create -q -f qcow2 -F raw -b $baseuri $overlay && exec qemu-nbd -t -e 9 -f qcow2 -k $unixsocket $overlay"
)
WHOLE, ELSEWHERE = "WRITE 0+65536", "WRITE 32768+4096"

# What docs/races/ says of them, each with the page.
RACES = [
    (NBDKIT, "concurrency/write", f"WRITE 4096+512 beside {WHOLE}"),  # part-beside-whole
    (NBDKIT, "concurrency/read", f"READ 4096+512 beside {WHOLE}"),  # copy-on-read
    (NBDKIT, "concurrency/read", f"READ 4096+512 beside {ELSEWHERE}"),  # copy-on-read-elsewhere
    (NBDKIT, "concurrency/cache", f"CACHE 0+65536 beside {WHOLE}"),  # copy-on-cache
    (NBDKIT, "concurrency/zero-trim", "WRITE 4096+512 beside TRIM 0+65536"),  # part-beside-trim
    (QEMU, "concurrency/write", "WRITE 4096+512 beside ZERO 0+65536"),  # part-beside-zero
]


@pytest.mark.parametrize(("command", "rule", "pair"), RACES)
def test_the_kit_finds_the_races_of_other_peoples_servers_without_being_told(command, rule, pair):
    need(command.removeprefix("exec ").split()[0], "nbdkit" if command is NBDKIT else "qemu-utils")
    with started(command) as subject:
        assert pair in failed(subject, [RULES[rule]])[rule]


# Each cuts its writes where one level allows it and the next does not: at a multiple of so many bytes.
CUTS = {"sector": 256, "block": 512, "request": BLOCK_BYTES}


@pytest.mark.parametrize("level", CUTS)
def test_a_level_that_is_claimed_and_not_kept_is_found_out(level, monkeypatch, short_path, tmp_path):
    class Torn(Overlay):
        def write(self, offset, data, fetched=None):
            cut = min(CUTS[level] - offset % CUTS[level], len(data))
            super().write(offset, data[:cut], fetched)
            if cut < len(data):
                released.wait(0.002)
                super().write(offset + cut, data[cut:])

    released = threading.Event()
    monkeypatch.setattr(export, "Overlay", Torn)
    monkeypatch.setattr(Commands, "_is_small", lambda self, request: False)
    keeps = {"sector": [], "block": ["sector"], "request": ["block"]}[level]
    with serving(short_path / "s") as target:
        for claim in (level, *keeps):
            settings = Settings(quick=True, claims=frozenset({claim}), keep=tmp_path)
            found = failed(InProcess(target, settings=settings), [RULES[f"concurrency/{claim}"]])
            assert bool(found) == (claim == level), found
    assert (tmp_path / f"{level}.jsonl").exists()


def test_every_rule_has_a_server_that_breaks_it():
    shown = {rule for rule, *_ in OVERLAYS.values()} | {f"concurrency/{level}" for level in CUTS}
    assert {rule.name for rule in chosen(["concurrency"])} == shown
