"""docs/conformance.md: what is made of results, and that the page that is committed is of the rules there are."""

import pytest
from click.testing import CliRunner
from servers import ROOT

from check.conform import results
from check.conform.judged import judged, judgement
from check.conform.page import NOT_LOOKED_AT, page
from check.conform.results import SERVERS, Server
from check.conform.rule import RULES, Verdict
from check.conform.run import Result

PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
SHOWN = {name: (server.shown, server.claims) for name, server in SERVERS.items()}


def result(name, verdict, detail=""):
    rule = RULES[name]
    return Result(rule, verdict, detail, 0.1, verdict is Verdict.FAIL and rule.binds(()))


FOUND = {
    "cowproof": [result("handshake/abort", Verdict.PASS), result("tls/twice", Verdict.NOT_OFFERED, "no TLS")],
    "nbd-server": [
        result("handshake/abort", Verdict.FAIL, "no reply to option 2"),
        result("status/one", Verdict.FAIL, "\n".join(f"line {number}" for number in range(99))),
    ],
    "qemu-nbd raw": "qemu-nbd is not installed",
    "nbdkit file, TLS": [result("tls/twice", Verdict.PASS)],
}


def test_the_page_has_a_row_for_each_rule_and_a_column_for_each_server():
    lines = page(FOUND, SHOWN, ["nbdkit 1.2.3"]).splitlines()
    assert any(line.startswith("nbdkit 1.2.3.") for line in lines)
    assert "| rule | | section | cowproof | nbd-server |" in lines
    assert "| handshake/abort | MUST | NBD_OPT_ABORT | yes | **no** |" in lines
    assert "| tls/twice | MUST | FORCEDTLS mode; SELECTIVETLS mode | - |  |" in lines
    assert "| rule | | section | nbdkit file, TLS |" in lines
    assert any(line.startswith("| nbd-server |") and line.endswith("| 0 of 2 | 0 of 0 |") for line in lines)
    assert any(line.startswith("| qemu-nbd raw |") and "not installed" in line for line in lines)


def test_what_fails_is_shown_with_what_somebody_says_of_it_or_that_nobody_does():
    text = page(FOUND, SHOWN, [])
    part = text.partition("### nbd-server")[2]
    assert "no reply to option 2" in part
    assert judgement("nbd-server", "handshake/abort") in part
    assert NOT_LOOKED_AT in part
    assert "line 15" in part
    assert "line 16" not in part
    assert "### qemu-nbd raw" not in text


def test_the_committed_page_is_of_the_rules_there_are_and_all_that_fails_was_looked_at():
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in PAGE.splitlines() if line.startswith("| ")}
    assert set(RULES) <= set(rows), "python -m check.conform.results -o docs/conformance.md"
    assert {name for name in rows if "/" in name} == set(RULES)
    assert all(RULES[name].section in rows[name] for name in RULES)
    assert NOT_LOOKED_AT not in PAGE
    assert "not installed" not in PAGE


def test_on_the_committed_page_we_pass_everything():
    for part in ("### cowproof", "### cowproof, TLS"):
        assert PAGE.partition(f"{part}\n")[2].split("###")[0].strip() == "Nothing."


def test_every_judgement_is_of_a_server_and_a_rule_that_there_are():
    for entry in judged():
        assert any(judgement(server, rule) == entry["says"] for server in SERVERS for rule in RULES), entry


def test_the_command_tries_servers_and_says_of_those_that_are_not_there(monkeypatch, tmp_path):
    output = tmp_path / "page.md"
    monkeypatch.setattr(results, "SERVERS", {"cowproof": SERVERS["cowproof"], "gone": Server("false $unixsocket", "x")})
    monkeypatch.setattr(results, "chosen", lambda patterns: [RULES["handshake/greeting"]])
    monkeypatch.setattr("check.conform.place.START_LIMIT_S", 5)
    done = CliRunner().invoke(results.results, ["-o", str(output)])
    assert done.exit_code == 0, done.output
    text = output.read_text(encoding="utf-8")
    assert "| handshake/greeting | MUST | Newstyle negotiation | yes |" in text
    assert "does not listen" in text


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_is_started_as_it_is_shown(name):
    server = SERVERS[name]
    program = server.shown.removeprefix("exec ").split()[0]
    assert program in ("cowproof", "nbdkit", "qemu-nbd", "nbd-server", "test")
    for variable in ("$unixsocket", "$base", "$baseuri", "$overlay", "$pidfile"):
        if variable in server.shown:
            assert variable in server.command
