"""What has been tried, for people and for programs.

Shapes:  two columns, connection A beside connection B, a line for each event, as a review would write it; a JSON
         object with a list of races, each with a trial for each of its servers, by the server's name.
Units:   milliseconds; bytes from the start of the block.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from check.live.play import Event, Outcome, Trial
from check.live.programs import Race
from check.live.verdict import Run, Verdict, in_words, lost_byte_count, runs_of

WIDTH = 100
COLUMN = 34
OURS = "cowproof"


@dataclass(frozen=True, slots=True)
class Result:
    """One race: what each server did. Without the other server there are no trials, and `missing` says what to do."""

    race: Race
    trials: Mapping[str, Trial]
    missing: str = ""


def server_names(race: Race) -> tuple[str, str]:
    """The other server, and ours."""
    return race.other, OURS


def paragraph(text: str) -> str:
    """Wrapped, and indented."""
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def heading(race: Race) -> Iterator[str]:
    """Which race this is, before anything is tried."""
    yield f"== {race.name}: {race.title}"
    yield ""


def trial_lines(race: Race, server: str, trial: Trial) -> Iterator[str]:
    """All there is to say of one server in one race."""
    yield f"  -- {server}"
    yield from (f"     $ {command}" for command in trial.commands)
    yield ""
    yield from columns(trial.outcome.events)
    yield ""
    yield f"    read back  {whose(trial.outcome.found, trial.outcome)}"
    yield f"    expected   {' | '.join(whose(each, trial.outcome) for each in trial.outcome.allowed)}"
    yield f"    verdict    {verdict_in_words(trial)}"
    yield ""
    if server != OURS and trial.verdict is Verdict.LOST:
        yield paragraph(f"Why: {race.why}")
        yield paragraph(f"Since: {race.commit}.")
        yield ""


def missing_lines(missing: str) -> Iterator[str]:
    """In the place of trials that there are none of."""
    yield f"  not tried: {missing}"
    yield ""


def whose(contents: bytes, outcome: Outcome) -> str:
    """Whose bytes are where, in words."""
    return in_words(runs_of(contents, outcome.base))


def columns(events: Sequence[Event]) -> Iterator[str]:
    """Connection A on the left, B on the right, time downwards."""
    yield f"    {'connection A':<{COLUMN}}connection B"
    for event in events:
        indent = "" if event.connection == "A" else " " * COLUMN
        yield f"    {indent}{event.at_ms:4.0f} ms  {event.what}"


def verdict_in_words(trial: Trial) -> str:
    """The verdict on one server, and what it rests on."""
    outcome, tries = trial.outcome, counted(trial.tries, "try", "tries")
    match trial.verdict:
        case Verdict.LOST:
            count = counted(lost_byte_count(outcome.found, outcome.allowed), "byte holds", "bytes hold")
            return f"LOST: both were answered, and {count} what no order of the two leaves there ({tries})"
        case Verdict.TORN:
            return f"TORN: both were answered, and parts of two orders are mixed ({tries})"
        case Verdict.HOLDS:
            return f"HOLDS: in {tries}; in flight together in {trial.met}, B answered first in {trial.b_was_first}"
        case Verdict.UNKNOWN:
            return f"UNKNOWN: in {tries} the two were never in flight together, so nothing was shown"


def counted(number: int, one: str, many: str) -> str:
    """Such as `1 try`."""
    return f"{number} {one if number == 1 else many}"


IN_TABLE = {  # (is it ours, the verdict)
    (False, Verdict.LOST): "LOST a write, on try {tries}",
    (False, Verdict.HOLDS): "lost nothing in {tries}",
    (True, Verdict.LOST): "LOST a write, on try {tries}",
    (True, Verdict.HOLDS): "holds in {tries} of {tries}",
}


def summary_lines(results: Sequence[Result], versions: Mapping[str, str]) -> Iterator[str]:
    """A row for each race, below the other server that it is about."""
    for other, group in groupby(results, key=lambda result: result.race.other):
        yield f"  {'race':<26}{short(versions.get(other, other)):<30}{OURS}"
        for result in group:
            cells = [cell(server, result) for server in server_names(result.race)]
            yield f"  {result.race.name:<26}{cells[0]:<30}{cells[1]}"


def short(version: str) -> str:
    """The name and the number, without what a distribution adds."""
    return " ".join(version.split()[:2])


def cell(server: str, result: Result) -> str:
    """One entry of the summary."""
    if server not in result.trials:
        return "not tried"
    trial = result.trials[server]
    text = IN_TABLE.get((server == OURS, trial.verdict), trial.verdict.value.upper() + " after {tries}")
    return text.format(tries=trial.tries)


def as_json(results: Sequence[Result], versions: Mapping[str, str], status: int) -> dict[str, object]:
    """The same for programs. A race whose other server is missing has `missing` in the place of trials."""
    return {
        "versions": dict(versions),
        "status": status,
        "races": [
            {
                "name": result.race.name,
                "title": result.race.title,
                "why": result.race.why,
                "commit": result.race.commit,
                "other": result.race.other,
                **({"missing": result.missing} if result.missing else {}),
                **{server: trial_as_json(trial) for server, trial in result.trials.items()},
            }
            for result in results
        ],
    }


def trial_as_json(trial: Trial) -> dict[str, object]:
    """One server in one race."""
    return {
        "commands": list(trial.commands),
        "verdict": trial.verdict.value,
        "tries": trial.tries,
        "tries_in_flight_together": trial.met,
        "tries_b_answered_first": trial.b_was_first,
        **outcome_as_json(trial.outcome),
    }


def outcome_as_json(outcome: Outcome) -> dict[str, object]:
    """The try that decided, or the last."""
    return {
        "events": [
            {"at_ms": round(event.at_ms, 1), "connection": event.connection, "what": event.what}
            for event in outcome.events
        ],
        "read_back": runs_as_json(runs_of(outcome.found, outcome.base)),
        "expected": [runs_as_json(runs_of(each, outcome.base)) for each in outcome.allowed],
        "lost_bytes": lost_byte_count(outcome.found, outcome.allowed),
    }


def runs_as_json(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Whose bytes are where."""
    return [{"offset": run.offset, "length": run.length, "source": run.source.name.lower()} for run in runs]
