"""The kit: our server passes, each of many faulty ones fails by the rule that names its fault and by no other, and
whatever a server does, the kit comes to an end.

Faulty servers are ours, with one thing done otherwise: faulty_handshakes.py, faulty_commands.py. Those that lose writes
to each other are in test_conform_races.py, those that forget in test_conform_durability.py.
"""

import json
import socket
import ssl
import threading
from xml.etree import ElementTree

import pytest
from certificates import write_certificates
from click.testing import CliRunner
from conform_servers import InProcess, failed, serving
from faulty_commands import SERVERS, faulty, status
from faulty_handshakes import FRAGILE, HANDSHAKES, TLS_HANDSHAKES
from servers import need

from check.conform import link
from check.conform.command import conform
from check.conform.rule import RULES, Failure, Need, NotApplicable, Rule, Verdict
from check.conform.run import Result, as_json, as_junit, chosen, run, verdict_of
from check.conform.subject import Settings, Subject, started, there
from check.conform.vectors import SIZE
from impl.client.uri import Target
from impl.client.uri import Tls as TlsWanted
from impl.errors import StartError, UsageError
from impl.nbd.agreement import Tls
from impl.nbd.constants import Command, CommandFlag, OptionReply, TransmissionFlag
from impl.nbd.server_handshake import ServerHandshake
from impl.server import session
from impl.server.session import TlsOffer
from impl.tls import TlsSocket, server_context

# What takes long, and is not about these faults.
SLOW = ("semantics", "malformed", "concurrency", "durability")
QUICK = Settings(quick=True)


@pytest.fixture
def ours(short_path):
    with serving(short_path / "s") as target:
        yield InProcess(target)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Whoever does not answer here never will."""
    monkeypatch.setattr(link, "LIMIT_S", 0.5)


# Of a server that can be written to, byte by byte, and without TLS.
NOT_OFFERED = {"transmission/read-only", "transmission/unaligned", "transmission/fast-zero-unasked"}
NOT_OFFERED |= {"semantics/read-only", *(rule.name for rule in chosen(["tls"]))}
NOT_OFFERED -= {"tls/not-there"}
# What we claim is more.
NOT_CLAIMED = {"concurrency/sector", "concurrency/block"}


def test_our_server_passes_all_rules(ours):
    quick = InProcess(ours.target, settings=Settings(quick=True, claims=frozenset({"request", "zero-trim"})))
    long, short = chosen(["concurrency", "malformed"]), [rule for rule in RULES.values() if rule.group not in SLOW]
    results = run([*short, *chosen(["semantics"])], lambda: ours, lambda _: None)
    results += run(long, lambda: quick, lambda _: None)
    found = {result.rule.name: result.detail for result in results if result.verdict is not Verdict.PASS}
    assert set(found) == NOT_OFFERED | NOT_CLAIMED, found


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """Certificates of a server."""
    folder = tmp_path_factory.mktemp("tls")
    write_certificates(folder)
    return server_context(str(folder), verify_peer=False)


@pytest.mark.parametrize("mode", ["on", "require"])
def test_our_server_passes_through_tls(mode, secrets, short_path):
    tls = TlsOffer(Tls(mode), secrets)
    tried = [rule for rule in RULES.values() if rule.group not in SLOW]
    with serving(short_path / "s", tls=tls) as target:
        subject = InProcess(Target(path=target.path, tls=TlsWanted(verify_peer=False)), options={"tls": tls})
        results = run(tried, lambda: subject, lambda _: None)
    found = {result.rule.name: result.detail for result in results if result.verdict is not Verdict.PASS}
    expected = {"on": {"tls/required"}, "require": {"tls/forgets"}}[mode]
    in_the_clear = {name for name in NOT_OFFERED if name.startswith("transmission/")}
    assert set(found) == in_the_clear | {"tls/not-there"} | expected, found


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_faulty_handshake_fails_by_the_rule_that_names_it_and_by_no_other(name, monkeypatch, short_path):
    rule, made = HANDSHAKES[name]
    monkeypatch.setattr(session, "ServerHandshake", made)
    tried = [rule for rule in RULES.values() if rule.group not in SLOW]
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), tried)) == {rule}


@pytest.mark.parametrize("name", TLS_HANDSHAKES)
def test_a_faulty_handshake_with_tls_fails_by_the_rule_that_names_it(name, monkeypatch, secrets, short_path):
    rule, mode, made = TLS_HANDSHAKES[name]
    monkeypatch.setattr(session, "ServerHandshake", made)
    with serving(short_path / "s", tls=TlsOffer(Tls(mode), secrets)) as target:
        assert set(failed(InProcess(target), chosen(["tls"]))) == {rule}


def test_a_server_that_does_not_shut_tls_down_is_found_out(monkeypatch, secrets, short_path):
    monkeypatch.setattr(TlsSocket, "shutdown", lambda self, how: socket.socket.shutdown(self._ssl, how))
    with serving(short_path / "s", tls=TlsOffer(Tls.ON, secrets)) as target:
        assert set(failed(InProcess(target), chosen(["tls"]))) == {"tls/disconnect"}


def test_a_server_that_takes_a_write_it_should_refuse_through_tls_is_found_out(monkeypatch, secrets, short_path):
    def takes_any_flag(self, request, shipped):
        return self._done(request) if request.command == Command.WRITE else shipped()

    monkeypatch.setattr(session, "Commands", faulty(takes_any_flag))
    with serving(short_path / "s", tls=TlsOffer(Tls.ON, secrets)) as target:
        assert set(failed(InProcess(target), chosen(["tls"]))) == {"tls/rejected-write"}


@pytest.mark.parametrize("name", SERVERS)
def test_a_faulty_server_fails_by_the_rule_that_names_it_and_by_no_other(name, monkeypatch, short_path):
    rule, fault, options = SERVERS[name]
    monkeypatch.setattr(session, "Commands", faulty(fault))
    tried = [other for other in RULES.values() if other.group not in SLOW or other.name == rule]
    with serving(short_path / "s", **options) as target:
        assert set(failed(InProcess(target, options=options), tried)) == {rule}
        others = [other for other in chosen(["semantics"]) if other.name != rule]
        assert failed(InProcess(target, options=options, settings=QUICK), others) == {}


def test_a_server_that_knows_no_tls_of_12_is_found_out(monkeypatch, secrets, short_path):
    monkeypatch.setattr(secrets, "minimum_version", ssl.TLSVersion.TLSv1_3)
    with serving(short_path / "s", tls=TlsOffer(Tls.ON, secrets)) as target:
        assert set(failed(InProcess(target), chosen(["tls"]))) == {"tls/version"}


def test_a_server_that_takes_fast_zeroes_it_does_not_offer_is_found_out(monkeypatch, short_path):
    class OffersNone(ServerHandshake):
        def _flags(self, export):
            return super()._flags(export) & ~TransmissionFlag.SEND_FAST_ZERO

    def takes_them(self, request, shipped):
        is_it = request.command == Command.WRITE_ZEROES and request.flags & CommandFlag.FAST_ZERO
        return self._done(request) if is_it else shipped()

    monkeypatch.setattr(session, "ServerHandshake", OffersNone)
    tried = [rule for rule in RULES.values() if rule.group not in SLOW]
    with serving(short_path / "s") as target:
        assert failed(InProcess(target), tried) == {}
    monkeypatch.setattr(session, "Commands", faulty(takes_them))
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), tried)) == {"transmission/fast-zero-unasked"}


class HasSectors(ServerHandshake):
    """The smallest block is said to be 512 bytes."""

    def _reply(self, option, reply, data=b""):
        is_sizes = option in (6, 7) and reply == OptionReply.INFO and data[:2] == b"\0\3"
        super()._reply(option, reply, b"\0\3\0\0\2\0" + data[6:] if is_sizes else data)


def test_a_server_that_does_not_hold_to_its_own_block_size_is_found_out(monkeypatch, short_path):
    monkeypatch.setattr(session, "ServerHandshake", HasSectors)
    tried = [rule for rule in RULES.values() if rule.group not in SLOW]
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), tried)) == {"transmission/unaligned"}


def test_extents_that_are_not_whole_blocks_are_found_out(monkeypatch, short_path):
    def cuts_extents(self, request, shipped):
        is_it = request.command == Command.BLOCK_STATUS and request.length == SIZE // 512 * 512
        return status(self, request, [(100, 0), (request.length - 100, 0)]) if is_it else shipped()

    monkeypatch.setattr(session, "ServerHandshake", HasSectors)
    monkeypatch.setattr(session, "Commands", faulty(cuts_extents))
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), chosen(["status"]))) == {"status/aligned"}


@pytest.mark.parametrize("name", FRAGILE)
def test_a_server_that_does_not_survive_nonsense_is_found_out(name, monkeypatch, short_path):
    rule, made = FRAGILE[name]
    monkeypatch.setattr(session, "ServerHandshake", made)
    monkeypatch.setattr(made, "broken", False)
    with serving(short_path / "s") as target:
        subject = InProcess(target, settings=QUICK)
        assert "not served" in failed(subject, [RULES[rule]])[rule]


def test_every_rule_that_a_server_can_fail_has_a_faulty_server():
    registered = [*HANDSHAKES.values(), *TLS_HANDSHAKES.values(), *SERVERS.values(), *FRAGILE.values()]
    shown = {rule for rule, *_ in registered}
    assert {rule.name for rule in RULES.values() if rule.group not in ("concurrency", "durability")} - shown == {
        "handshake/greeting",  # below
        "transmission/disconnect",
        "tls/disconnect",  # above
        "tls/rejected-write",
        "tls/version",
        "transmission/fast-zero-unasked",
        "transmission/unaligned",
        "status/aligned",
    }


class Odd:
    """A server of one's own making: what it says to whoever connects."""

    def __init__(self, place, talk):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen(100)
        self._talk = talk
        self._held = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(sock)
            self._talk(sock)

    def close(self):
        self._listener.close()
        for sock in self._held:
            sock.close()


ODD = {
    "that says nothing": lambda sock: None,
    "that closes at once": lambda sock: sock.close(),
    "that says something else": lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10),
    "that is of the oldstyle": lambda sock: sock.sendall(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + bytes(136)),
    "that greets, and no more": lambda sock: sock.sendall(b"NBDMAGICIHAVEOPT\0\3"),
    "that never ends": lambda sock: sock.sendall(b"NBDMAGICIHAVEOPT\0\3" + b"\0\3\xe8\x89\x04\x55\x65\xa9" * 4000),
}


@pytest.mark.parametrize("what", ODD)
def test_no_server_hangs_the_kit(what, monkeypatch, short_path):
    monkeypatch.setattr(link, "LIMIT_S", 0.1)
    odd = Odd(short_path / "s", ODD[what])
    try:
        found = failed(Subject(Target(path=str(short_path / "s"))), chosen(["handshake", "transmission"]))
        assert ("handshake/greeting" in found) == (what not in ("that greets, and no more", "that never ends"))
        tried = {rule.name for rule in chosen(["handshake", "transmission"])}
        fine = {
            "handshake/greeting",
            "handshake/greeting-flags",
            "transmission/maximum-payload",
        }  # needs another server
        assert tried - set(found) <= fine
    finally:
        odd.close()


def test_a_server_that_does_not_close_after_a_disconnect_is_found_out(monkeypatch, short_path):
    monkeypatch.setattr(session.Session, "_heard_all", lambda self: None)
    with serving(short_path / "s") as target:
        assert set(failed(InProcess(target), chosen(["transmission"]))) == {"transmission/disconnect"}


# The command.


def test_other_peoples_servers_are_started_and_ended(short_path):
    need("nbdkit", "nbdkit")
    with started("nbdkit -f -U $unixsocket --filter=cow file $base") as subject:
        assert not failed(subject, chosen(["handshake"]))
        place = subject.target.path
    with pytest.raises(Failure, match="cannot be connected"):
        link.Link(Target(path=place))


STARTS = [
    ("false", UsageError, r"\$unixsocket"),
    ("echo no room >&2; false $unixsocket", StartError, "no room"),
    ("sleep 60 # $unixsocket", StartError, "does not listen"),
]


@pytest.mark.parametrize(("command", "error", "said"), STARTS)
def test_a_server_that_does_not_start_is_told(command, error, said, monkeypatch):
    monkeypatch.setattr("check.conform.place.START_LIMIT_S", 0.3)
    with pytest.raises(error, match=said), started(command):
        pass


def test_without_a_command_what_needs_a_fresh_server_is_not_applicable(ours):
    verdict, detail = verdict_of(RULES["semantics/read"], there(ours.target.uri))
    assert verdict is Verdict.NOT_APPLICABLE
    assert "--start" in detail


def test_rules_are_chosen_by_name_group_and_pattern():
    assert [rule.name for rule in chosen(["handshake/list"])] == ["handshake/list"]
    assert {rule.group for rule in chosen(["semantics"])} == {"semantics"}
    assert len(chosen(["handshake/*"])) == len(chosen(["handshake"]))
    assert len(chosen([])) == len(RULES)
    with pytest.raises(UsageError, match="--list"):
        chosen(["handshake/no-such-rule"])


def a_rule(need_):
    return Rule("group/name", need_, "Section", "Says", lambda subject: None)


RESULTS = [
    Result(a_rule(Need.MUST), Verdict.FAIL, "it <does> not\x00\nat all", 0.5, True),
    Result(a_rule(Need.SHOULD), Verdict.FAIL, "nor that", 0.1, False),
    Result(a_rule(Need.MUST), Verdict.NOT_OFFERED, "none", 0.0, False),
    Result(a_rule(Need.MUST), Verdict.PASS, "", 0.0, False),
]


def test_results_are_json_and_junit():
    found = json.loads(as_json(RESULTS, "somewhere"))
    assert [rule["verdict"] for rule in found["rules"]] == ["fail", "fail", "not offered", "pass"]
    suite = ElementTree.fromstring(as_junit(RESULTS, "some<where"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "1")
    assert suite.find("testcase/failure").get("message") == "it <does> not?"


def test_the_command_tells_each_rule_and_how_to_try_it_alone(ours, tmp_path):
    files = ["--json", str(tmp_path / "a.json"), "--junit", str(tmp_path / "a.xml")]
    done = CliRunner().invoke(conform, [ours.target.uri, "--only", "handshake", *files])
    assert done.exit_code == 0, done.output
    assert "pass            handshake/greeting" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["rules"]
    assert ElementTree.parse(tmp_path / "a.xml").getroot().get("failures") == "0"
    assert "handshake/greeting" in CliRunner().invoke(conform, ["--list"]).output


def test_the_status_is_one_for_a_broken_must_and_zero_for_a_should(ours, monkeypatch):
    def breaks(need_):
        def check(subject):
            raise Failure("no")

        return Rule("handshake/list", need_, "Section", "Says", check)

    for need_, expected in ((Need.MUST, 1), (Need.SHOULD, 0)):
        monkeypatch.setitem(RULES, "handshake/list", breaks(need_))
        done = CliRunner().invoke(conform, [ours.target.uri, "--only", "handshake/list"])
        assert done.exit_code == expected
        assert f"alone: cowproof conform '{ours.target.uri}' --only handshake/list" in done.output


def test_a_uri_and_a_command_are_one_too_many():
    for arguments in ([], ["nbd://localhost", "--start", "x $unixsocket"]):
        done = CliRunner().invoke(conform, arguments)
        assert isinstance(done.exception, UsageError)


def test_not_applicable_is_no_failure():
    def check(subject):
        raise NotApplicable("not here")

    rule = Rule("group/name", Need.MUST, "Section", "Says", check)
    assert verdict_of(rule, Subject(Target())) == (Verdict.NOT_APPLICABLE, "not here")
