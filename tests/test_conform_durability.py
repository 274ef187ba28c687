"""The kit on what has to outlive a server: it is killed, started again, and asked."""

import shlex
import sys
from pathlib import Path

import pytest
from conform_servers import failed
from servers import need

from check.conform.rule import RULES, Verdict
from check.conform.run import chosen, run
from check.conform.subject import Settings, started
from impl.client.uri import Target

TESTS = Path(__file__).parent
DURABILITY = chosen(["durability"])
CLAIMED = frozenset({"persistent"})


def command(fault):
    """How a server with a fault is started."""
    script = shlex.join([sys.executable, str(TESTS / "persistent_server.py")])
    return f"PYTHONPATH={shlex.quote(str(TESTS.parent))} exec {script} $unixsocket $overlay {shlex.quote(fault)}"


def verdicts(subject):
    """What comes of each rule."""
    return {result.rule.name: result.verdict for result in run(DURABILITY, lambda: subject, lambda _: None)}


def test_a_server_that_saves_what_it_should_passes():
    with started(command("none"), settings=Settings(claims=CLAIMED)) as subject:
        assert set(verdicts(subject).values()) == {Verdict.PASS}


FAULTS = {
    "ignores flushes": {"durability/flush", "durability/multi-conn"},
    "ignores FUA": {"durability/fua"},
    "flushes its own": {"durability/multi-conn"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_forgets_is_found_out_by_what_it_forgets(fault):
    with started(command(fault)) as subject:
        assert set(failed(subject, DURABILITY)) == FAULTS[fault]


def test_whoever_keeps_nothing_breaks_only_what_is_claimed():
    need("nbdkit", "nbdkit")
    with started("exec nbdkit -f -U $unixsocket memory 1M") as subject:
        assert set(verdicts(subject).values()) == {Verdict.NOT_APPLICABLE}
    with started(command("keeps nothing"), settings=Settings(claims=CLAIMED)) as subject:
        assert "durability/persistent" in failed(subject, [RULES["durability/persistent"]])


NBD_SERVER = """\
printf '[generic]\\nunixsock = %s\\n[disk]\\nexportname = %s\\nflush = true\\nfua = true\\n' "$unixsocket" "$base" \
  > "$TMPDIR/config"; exec nbd-server -C "$TMPDIR/config" -p "$pidfile"
"""


def test_a_server_in_the_background_is_killed_by_its_number():
    need("nbd-server", "nbd-server")
    with started(NBD_SERVER, Target("disk")) as subject:
        assert verdicts(subject)["durability/flush"] is Verdict.PASS
