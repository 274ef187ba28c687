"""TLS with pre-shared keys: who is let in, who is believed, and what is said of a file that is of no use.

Source: NBD protocol, "TLS support"; nbd_connect_uri(3), nbdkit-tls(1); RFC 8446 section 2.2.
"""

import socket
import ssl
import subprocess
import sys
from contextlib import suppress

import psk_contexts
import pytest
from certificates import write_certificates
from conform_servers import failed, serving
from servers import MIB, SERVER, nbdkit_serving, need, run

from check.conform.disk import VECTORS
from check.conform.rule import RULES
from check.conform.run import subject_of
from check.conform.subject import Settings
from impl import psk, tls
from impl.client import connect
from impl.client.link import HandshakeError, export_info, tls_context
from impl.client.uri import Target, parse
from impl.client.uri import Tls as ClientTls
from impl.errors import StartError, UsageError
from impl.nbd.agreement import Tls
from impl.server.listeners import listen_unix, uri_of
from impl.server.session import TlsOffer
from impl.tls import TlsSocket, WouldBlock

ALICE, BOB = "5a" * 32, "b0" * 16
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def keys_of(tmp_path):
    """keys_of(name, line...): a file of these lines."""

    def write(name, *lines):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def keys(keys_of):
    """A file of two keys."""
    return keys_of("keys.psk", f"alice:{ALICE}", "", f"bob:{BOB.upper()}")


@pytest.fixture
def with_keys(monkeypatch):
    """A Python that has them."""
    psk_contexts.give(monkeypatch)


def server_context(path):
    """Of a server that has a file of keys."""
    return psk.server_context(psk.read_keys(path))


def shaken(server, client):
    """Shake hands, and send a word each way; SSLError from whoever does not like the other."""
    ours, theirs = socket.socketpair()
    ends = [
        TlsSocket(ours, server, server_side=True),
        TlsSocket(theirs, client, server_side=False, hostname="localhost"),
    ]
    try:
        done = set()
        while len(done) < len(ends):
            for end in ends:
                with suppress(WouldBlock):
                    end.handshake()
                    done.add(end)
        heard = []
        for sender, receiver in (ends, reversed(ends)):
            sender.sendmsg([b"word"])
            heard.append(receiver.recv(4))
        assert heard == [b"word", b"word"]
        return ends[0].version
    finally:
        for end in ends:
            end.close()


def only(version, context):
    """The same, for no other version of TLS."""
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["alice", "bob"])
def test_both_sides_with_one_key_speak(name, version, keys, with_keys):
    assert shaken(server_context(keys), only(version, psk.client_context(keys, name))) == version.name.replace("_", ".")


def test_one_server_knows_many_clients_each_by_its_own_key(keys, keys_of, with_keys):
    server = server_context(keys)
    for name, key in (("alice", ALICE), ("bob", BOB)):
        assert shaken(server, psk.client_context(keys_of(name, f"{name}:{key}"), name))


STRANGERS = [  # (claim, the client's key)
    ("another key for the same name", f"alice:{'00' * 32}"),
    ("the key of another name", f"alice:{BOB}"),
    ("a name that has none", f"mallory:{ALICE}"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("claim", "line"), STRANGERS, ids=[claim for claim, _ in STRANGERS])
def test_a_client_is_refused_that_has(claim, line, version, keys, keys_of, with_keys):
    client = psk.client_context(keys_of("theirs", line), line.partition(":")[0])
    with pytest.raises(ssl.SSLError):
        shaken(server_context(keys), only(version, client))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_without_a_key_is_refused_however_little_it_asks(version, keys, with_keys):
    with pytest.raises(ssl.SSLError):
        shaken(server_context(keys), only(version, tls.client_context(None, verify_peer=False)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_with_a_certificate_is_not_believed_to_have_the_key(version, keys, tmp_path, with_keys):
    """TLS 1.3 lets a server pass over the key that it is offered: so a stranger could read all that is written."""
    write_certificates(tmp_path)
    stranger = tls.server_context(str(tmp_path), verify_peer=False)
    stranger.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shaken(stranger, only(version, psk.client_context(keys, "alice")))


@pytest.mark.parametrize("context", [server_context, lambda keys: psk.client_context(keys, "alice")])
def test_who_learns_a_key_later_cannot_read_what_went_before(context, keys, with_keys):
    names = [cipher["name"] for cipher in context(keys).get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert names
    assert all(name.startswith(("ECDHE-PSK-", "DHE-PSK-")) and "NULL" not in name for name in names), names
    assert context(keys).minimum_version == ssl.TLSVersion.TLSv1_2


# The server and the client.


@pytest.fixture
def secure_server(short_path, keys, with_keys):
    """Where a server is that requires TLS, by a key."""
    with serving(short_path / "s", tls=TlsOffer(Tls.REQUIRE, server_context(keys))) as target:
        yield target


def secure(target, keys, name="alice"):
    return f"nbds+unix://{name}@/?socket={target.path}&tls-psk-file={keys}"


def test_a_disk_is_read_and_written_by_who_has_a_key(secure_server, keys):
    with connect(secure(secure_server, keys)) as alice, connect(secure(secure_server, keys, "bob")) as bob:
        assert alice.is_secure
        alice.pwrite(5, b"hello")
        assert bob.pread(5, 5) == b"hello"
    with pytest.raises(HandshakeError, match="TLS_REQD"):
        connect(f"nbd+unix:///?socket={secure_server.path}")


def test_a_stranger_learns_why_and_others_go_on(secure_server, keys, keys_of):
    theirs = keys_of("theirs", f"alice:{BOB}")
    with connect(secure(secure_server, keys)) as alice:
        with pytest.raises(HandshakeError, match="TLS with the server failed"):
            connect(secure(secure_server, theirs))
        assert alice.pread(0, 1)


def test_libnbd_speaks_with_the_server(secure_server, keys, keys_of, tmp_path):
    nbdinfo, nbdcopy = need("nbdinfo", "libnbd-bin"), need("nbdcopy", "libnbd-bin")
    uri = secure(secure_server, keys)
    assert f"export-size: {len(VECTORS.content())}" in run(nbdinfo, uri)
    run(nbdcopy, uri, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == VECTORS.content()
    run(nbdinfo, secure(secure_server, keys_of("theirs", f"alice:{BOB}")), status=1)


def test_the_client_speaks_with_nbdkit(keys, short_path, with_keys):
    place = short_path / "s"
    with nbdkit_serving(place, "--tls=require", f"--tls-psk={keys}"):
        uri = secure(Target(path=str(place)), keys, "bob")
        assert export_info(uri).size == MIB
        with connect(uri) as client:
            client.pwrite(100, b"nbdkit")
            assert client.pread(99, 8) == b"\0nbdkit\0"


def test_the_kit_holds_a_server_with_keys_to_the_rules_of_tls(secure_server, keys):
    target = parse(secure(secure_server, keys))
    rules = [rule for rule in RULES.values() if rule.group in ("tls", "handshake")]
    assert rules
    with subject_of(target.uri, None, Target(), Settings()) as subject:
        assert failed(subject, rules) == {}


def test_a_python_without_them_is_told_and_one_with_them_serves(keys, short_path, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(MIB))
    command = [*SERVER, "-U", str(short_path / "s"), "--tls", "require", "--tls-psk", keys, str(disk), "--run", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if getattr(ssl, "HAS_PSK", False):
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert "needs Python 3.13" in done.stderr
        assert "certificates need neither" in done.stderr


# What is written in files, URIs and options.

NO_KEYS = [  # (claim, lines, what is said)
    ("an empty file", [], "holds no keys"),
    ("lines that are blank", ["", "  "], "holds no keys"),
    ("no colon", ["alice"], "line 1: there is no name"),
    ("no name", [f":{ALICE}"], "line 1: there is no name"),
    ("a key that is not hex", ["", "alice:secret"], "line 2: the key is not hex"),
    ("half a byte", [f"alice:{ALICE}a"], "is not hex"),
    ("a key that can be guessed", [f"alice:{'00' * 15}"], "has 15 bytes, not 16 to 512"),
    ("an empty key", ["alice:"], "has 0 bytes"),
    ("more than OpenSSL takes", [f"alice:{'00' * 513}"], "has 513 bytes"),
    ("a name of more than OpenSSL takes", [f"{'a' * 256}:{ALICE}"], "more than 255"),
    ("a name with a zero byte", [f"al\0ice:{ALICE}"], "zero byte"),
    ("the key before the name", [f"{ALICE}:alice"], "line 1: the key is not hex"),
    ("something behind the key", [f"alice:{ALICE}:"], "is not hex"),
    ("a note behind the key", [f"alice:{ALICE}: mine"], "is not hex"),
    ("two keys", [f"alice:{ALICE}:{BOB}"], "is not hex"),
    ("a name in hex", [f"#616c:{ALICE}"], r"in hex \(#\) is not understood"),
    ("one name twice", [f"alice:{ALICE}", f"alice:{BOB}"], "line 2: that name has a key already"),
]


@pytest.mark.parametrize(("claim", "lines", "said"), NO_KEYS, ids=[case[0] for case in NO_KEYS])
def test_there_are_no_keys_in(claim, lines, said, keys_of):
    with pytest.raises(StartError, match=said) as refused:
        psk.read_keys(keys_of("wrong", *lines))
    assert not any(secret in str(refused.value) for secret in (ALICE, BOB, "secret")), "a key is told to nobody"


def test_keys_are_read_as_psktool_writes_them(keys, keys_of):
    assert psk.read_keys(keys) == {"alice": bytes.fromhex(ALICE), "bob": bytes.fromhex(BOB)}
    with pytest.raises(StartError, match=r"No such file.*psktool"):
        psk.read_keys(f"{keys}.not")
    with pytest.raises(StartError, match="psktool"):
        psk.read_keys(str(keys).rpartition("/")[0])


def test_bytes_that_are_no_text_hold_no_keys(tmp_path):
    (tmp_path / "keys").write_bytes(b"\xff\xfe:00")
    with pytest.raises(StartError, match="not UTF-8"):
        psk.read_keys(str(tmp_path / "keys"))


def test_a_name_without_a_key_is_told_whose_there_are(keys, with_keys):
    with pytest.raises(StartError, match="no key for 'carol', only for 'alice', 'bob'"):
        psk.client_context(keys, "carol")


def test_who_has_no_name_is_told_to_say_whose_key_it_is(keys, monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("impl.client.link.getuser", nobody)
    with pytest.raises(StartError, match="nbds://NAME@HOST"):
        tls_context(ClientTls(psk_file=keys))


@pytest.mark.parametrize("name", ["", "disk"])
def test_what_is_told_of_a_server_is_enough_to_connect_to_it(name, keys, short_path):
    who = ClientTls(psk_file=keys, username="al@ice")
    with listen_unix(str(short_path / "s")) as listener:
        target = parse(uri_of(listener, name, True, "al@ice", keys))
        assert "tls-psk-file=/k%FF" in uri_of(listener, name, True, "alice", "/k\udcff"), "a path may be any bytes"
    assert (target.export, target.path, target.tls) == (name, str(short_path / "s"), who)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = parse(uri_of(listener, name, True, "al@ice", keys))
        assert (target.export, target.port, target.tls) == (name, listener.getsockname()[1], who)


URIS = [
    ("nbds://alice@host:1/?tls-psk-file=/k", ClientTls(psk_file="/k", username="alice")),
    ("nbds://a%40b@host:1/disk?tls-psk-file=/k", ClientTls(psk_file="/k", username="a@b")),
    ("nbds+unix://alice@/?socket=/s&tls-psk-file=/k", ClientTls(psk_file="/k", username="alice")),
    ("nbds+unix:///?socket=/s&tls-psk-file=/k", ClientTls(psk_file="/k")),
]


@pytest.mark.parametrize(("uri", "expected"), URIS, ids=[uri for uri, _ in URIS])
def test_a_uri_says_whose_key_it_is(uri, expected):
    assert parse(uri).tls == expected
    assert parse(uri).uri == uri


WRONG_URIS = [
    ("nbd://alice@host/", "nbds and tls-psk-file"),
    ("nbds://alice@host/", "nbds and tls-psk-file"),
    ("nbd://host/?tls-psk-file=/k", "not known"),
    ("nbds://alice:secret@host/?tls-psk-file=/k", "no password"),
    ("nbds://alice:secret@host/", "no password"),
    ("nbds://alice:p@secret@host/", "no password"),
    ("nbds://alice:secret/secret@host/?tls-psk-file=/k", "the port is no number up to 65535"),
    ("nbds://host/?tls-psk-file=a%00", "zero byte"),
    ("nbds://@host/?tls-psk-file=/k", "one name"),
    ("nbds://host/?tls-psk-file=/k&tls-certificates=/c", "no certificate"),
    ("nbds://host/?tls-psk-file=/k&tls-verify-peer=false", "no certificate"),
    ("nbds+unix://alice@host/?socket=/s&tls-psk-file=/k", "three slashes"),
]


@pytest.mark.parametrize(("uri", "said"), WRONG_URIS, ids=[uri for uri, _ in WRONG_URIS])
def test_a_uri_is_refused_that_would_mean_less_than_it_says(uri, said):
    with pytest.raises(UsageError, match=said) as refused:
        parse(uri)
    assert "secret" not in str(refused.value)


WRONG_OPTIONS = [
    (["--tls-psk", "k"], "need one of them"),
    (["--tls", "on"], "need --tls-certificates or --tls-psk"),
    (["--tls", "on", "--tls-psk", "k", "--tls-certificates", "c"], "goes without"),
    (["--tls", "on", "--tls-psk", "k", "--tls-verify-peer"], "goes without"),
    (["--tls", "on", "--tls-psk", ""], "expected the path of a file"),
]


@pytest.mark.parametrize(("options", "said"), WRONG_OPTIONS, ids=[" ".join(options) for options, _ in WRONG_OPTIONS])
def test_options_are_refused_that_do_not_go_together(options, said):
    done = subprocess.run([*SERVER, *options, "pattern:1M"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


WRONG_KIT_OPTIONS = [
    (["--start", "true", "--tls-psk", "k", "--tls-certificates", "c"], 2, "by one of them"),
    (["--start", "true", "--tls-username", "alice"], 2, "is missing"),
    (["nbds://localhost", "--tls-psk", "k"], 2, "a URI says it itself"),
    (["--start", "true", "--tls-psk", "no-such-file"], 1, "No such file"),
    (["nbds://alice@localhost/?tls-psk-file=no-such-file"], 1, "No such file"),
    (["nbds://localhost/?tls-certificates=no-such-folder"], 1, "no-such-folder: there is no such folder"),
]


@pytest.mark.parametrize(
    ("options", "status", "said"), WRONG_KIT_OPTIONS, ids=[" ".join(case[0]) for case in WRONG_KIT_OPTIONS]
)
def test_the_kit_refuses_keys_that_it_could_not_use(options, status, said):
    command = [sys.executable, "-m", "check.conform", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status
    assert said in " ".join(done.stderr.split())
