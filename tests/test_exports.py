"""Several exports of one server, the contexts that tell of them, and who may connect: over real sockets.

Source: NBD protocol, "Metadata querying", NBD_OPT_LIST; QEMU, docs/interop/nbd.rst, of qemu:allocation-depth.
"""

import json
import os
import socket
import stat
import subprocess

import pytest
from servers import MIB, SERVER, eventually, need, run

from impl.client import connect
from impl.client.link import HandshakeError, export_info, list_contexts, list_exports
from impl.nbd.constants import ALLOCATION_DEPTH, BASE_ALLOCATION, BLOCK_STATE, CONTEXT_IDS

BLOCK = 4096
ALL_CONTEXTS = (BASE_ALLOCATION, ALLOCATION_DEPTH, BLOCK_STATE)


def at(server, name):
    """The URI of an export."""
    return f"nbd+unix:///{name}?socket={server.socket}"


def refused(*arguments):
    """What a server says that does not start, and its status."""
    done = subprocess.run([*SERVER, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, done.stderr


def test_each_export_has_its_name_its_size_and_an_overlay_of_its_own(serve, small_base):
    server = serve(None, f"a={small_base}", "b=memory:1M", f"c={small_base}")
    assert [entry.name for entry in list_exports(server.uri)] == ["a", "b", "c"]
    assert all(entry.description for entry in list_exports(server.uri))
    content = small_base.read_bytes()
    with connect(at(server, "a")) as a, connect(at(server, "b")) as b, connect(at(server, "c")) as c:
        assert (a.size, b.size, c.size) == (2 * MIB, MIB, 2 * MIB)
        a.pwrite(0, b"a" * 10)
        b.pwrite(0, b"b" * 10)
        assert (a.pread(0, 10), b.pread(0, 10), c.pread(0, 10)) == (b"a" * 10, b"b" * 10, content[:10])
    assert small_base.read_bytes() == content
    with pytest.raises(HandshakeError, match="UNKNOWN"):
        export_info(at(server, "d"))


@pytest.mark.parametrize(("options", "size"), [((), MIB), (("-e", "two"), 2 * MIB)])
def test_who_names_none_gets_the_first_or_the_one_that_was_chosen(options, size, serve):
    server = serve(None, "one=memory:1M", "two=memory:2M", *options)
    assert export_info(at(server, "")).size == size


def test_a_file_with_such_a_name_is_a_file(serve, small_base):
    odd = small_base.with_name("a=b.img")
    odd.write_bytes(small_base.read_bytes())
    server = serve(odd)
    assert [entry.name for entry in list_exports(server.uri)] == [""]
    server = serve("=pattern:1M?seed=5")
    assert export_info(at(server, "")).size == MIB


def test_libnbd_finds_every_export(serve):
    server = serve(None, "one=memory:1M", "two=memory:2M")
    found = json.loads(run(need("nbdinfo", "libnbd-bin"), "--json", "--list", server.uri))
    assert {export["export-name"]: export["export-size"] for export in found["exports"]} == {
        "one": MIB,
        "two": 2 * MIB,
    }


MISUSES = [
    (("a=memory:1M", "memory:1M"), 2, "NAME=memory:1M"),
    (("a=memory:1M", "a=memory:1M"), 2, "two exports"),
    (("a=memory:1M", "b=memory:1M", "-e", "c"), 2, "expected one of 'a', 'b'"),
    (("a=memory:1M", "b=memory:1M", "--record", "x"), 2, "one at a time"),
    (("a=memory:1M", "b=/no/such/file"), 1, "/no/such/file"),
    (("--unix-mode", "660", "memory:1M"), 2, "needs --unix"),
    (("-U", "/tmp/x", "--unix-mode", "9", "memory:1M"), 2, "octal"),
    (("--max-clients", "0", "memory:1M"), 2, "from 1"),
    (("--tls", "on", "memory:1M"), 2, "--tls-certificates"),
    (("--tls-certificates", "/tmp", "memory:1M"), 2, "--tls on"),
    (("--tls-verify-peer", "memory:1M"), 2, "--tls on"),
    (("--tls", "on", "--tls-certificates", "/no/such", "memory:1M"), 1, "server-cert.pem"),
]


@pytest.mark.parametrize(("arguments", "status", "said"), MISUSES)
def test_what_makes_no_sense_is_refused_with_what_would(arguments, status, said):
    found, error = refused(*arguments)
    assert found == status
    assert said in error
    assert error.count("\n") == 1


# Contexts.


def test_contexts_are_listed_by_name_by_namespace_and_all(serve):
    server = serve("memory:1M")
    names = [context.name for context in list_contexts(server.uri)]
    assert tuple(names) == ALL_CONTEXTS
    for name in ALL_CONTEXTS:
        namespace = name.partition(":")[0] + ":"
        for query in (name, namespace):
            assert [context.name for context in list_contexts(server.uri, (query,))] == [name]


@pytest.mark.parametrize("extended", [False, True])
def test_each_context_says_its_own_of_the_same_blocks(serve, extended):
    server = serve("memory:1M")
    with connect(server.uri, extended=extended, contexts=ALL_CONTEXTS) as client:
        client.pwrite(BLOCK, b"x" * BLOCK)
        client.trim(3 * BLOCK, 2 * BLOCK)
        reply = client.wait(client.submit(7, offset=0, length=8 * BLOCK))
    assert reply.statuses == {
        CONTEXT_IDS[BASE_ALLOCATION]: [(BLOCK, 3), (BLOCK, 0), (6 * BLOCK, 3)],
        CONTEXT_IDS[ALLOCATION_DEPTH]: [(BLOCK, 0), (BLOCK, 1), (BLOCK, 0), (2 * BLOCK, 1), (3 * BLOCK, 0)],
        CONTEXT_IDS[BLOCK_STATE]: [(BLOCK, 0), (BLOCK, 1), (BLOCK, 0), (2 * BLOCK, 2), (3 * BLOCK, 0)],
    }


def test_of_depth_written_and_trimmed_blocks_are_one_run(serve):
    server = serve("memory:1M")
    with connect(server.uri, contexts=(ALLOCATION_DEPTH,)) as client:
        client.pwrite(0, b"x" * BLOCK)
        client.trim(BLOCK, BLOCK)
        reply = client.wait(client.submit(7, offset=0, length=3 * BLOCK))
    assert reply.statuses == {CONTEXT_IDS[ALLOCATION_DEPTH]: [(2 * BLOCK, 1), (BLOCK, 0)]}


def test_qemu_reads_the_allocation_depth(serve, small_base):
    qemu_img = need("qemu-img", "qemu-utils")
    server = serve(small_base)
    with connect(server.uri) as client:
        client.pwrite(64 * 1024, b"x" * 65536)
    image = f"driver=nbd,server.type=unix,server.path={server.socket},x-dirty-bitmap={ALLOCATION_DEPTH}"
    found = json.loads(run(qemu_img, "map", "--output=json", "--image-opts", image))
    # QEMU shows the first bit of such a context as `data`, turned round (qemu-nbd(8), "x-dirty-bitmap").
    assert [(part["start"], part["length"], part["data"]) for part in found] == [
        (0, 65536, True),
        (65536, 65536, False),
        (131072, 2 * MIB - 131072, True),
    ]


# Of a huge device, in one request.


def test_one_request_may_concern_all_of_a_huge_device(serve):
    tera = 1 << 40
    server = serve(f"memory:{tera}")
    with connect(server.uri) as client:
        assert client.extended
        client.pwrite(tera - BLOCK, b"x" * BLOCK)
        client.cache(0, tera)
        client.trim(0, 8 << 30)
        extents = client.block_status(0, tera)
        assert sum(extent.length for extent in extents) == tera
        assert not extents[-1].hole
        assert client.pread(tera - 2 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + b"x" * BLOCK


# Who may connect.


@pytest.mark.parametrize("mode", ["600", "666"])
def test_a_unix_socket_has_the_permissions_that_were_asked_for(mode, serve):
    server = serve("memory:1M", "--unix-mode", mode)
    assert stat.S_IMODE(os.stat(server.socket).st_mode) == int(mode, 8)


def test_beyond_the_limit_clients_wait_until_somebody_leaves(serve):
    server = serve("memory:1M", "--max-clients", "2")
    first, second = connect(server.uri), connect(server.uri)
    with socket.socket(socket.AF_UNIX) as third:
        third.connect(str(server.socket))
        third.settimeout(0.2)
        with pytest.raises(TimeoutError):
            third.recv(1)
        assert first.pread(0, 1) == second.pread(0, 1) == b"\0"
        first.disconnect()
        third.settimeout(20)
        assert third.recv(18).startswith(b"NBDMAGIC")
    with second, connect(server.uri) as fourth:
        assert fourth.pread(0, 1) == b"\0"
    eventually(lambda: server.stop() == 0, "it stops in order")


def test_zeroes_for_which_there_is_no_room_take_no_memory_in_proportion_to_the_disk(serve):
    server = serve("memory:1T", "--max-clients", "3")
    before_kib = server.status_number("VmHWM")
    with connect(server.uri) as client:
        with pytest.raises(OSError, match=r".+"):
            client.zero(0, client.size, no_hole=True)
    assert server.status_number("VmHWM") - before_kib < 64 << 10


def test_a_client_of_the_oldstyle_is_told_in_the_log_what_is_wrong(serve):
    server = serve("memory:1M")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.socket))
        sock.recv(18)
        sock.sendall(bytes.fromhex("25609513") + bytes(24))
        assert not sock.recv(100)
    eventually(lambda: "oldstyle" in server.stderr, "the reason is in the log")
