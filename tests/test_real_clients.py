"""The server, as other people's clients find it.

Source:  the manual pages of nbdinfo, nbdcopy, qemu-img, qemu-io, fio, nbd-client, and libnbd(3).
"""

import json
import os

import pytest
from libnbd_claims import CLAIMS
from servers import BLOCK, KIB, MIB, digest, libnbd, need, refuse, run

from impl.base.pattern import pattern

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def the_base_stays_as_it_is(request):
    """Whatever a client does."""
    names = [name for name in ("base", "small_base", "base_with_holes") if name in request.fixturenames]
    paths = [request.getfixturevalue(name) for name in names]
    before = [(digest(path), os.stat(path).st_mtime_ns) for path in paths]
    yield
    assert [(digest(path), os.stat(path).st_mtime_ns) for path in paths] == before


def test_a_peer_that_is_missing_skips_a_test_and_fails_it_on_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install the Debian package nothing"):
        need("no-such-program", package="nothing")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install the Debian package nothing"):
        need("no-such-program", package="nothing")


# nbdinfo

INFO = {
    "is_read_only": False,
    "is_rotational": False,
    "can_cache": True,
    "can_df": True,
    "can_fast_zero": True,
    "can_flush": True,
    "can_fua": True,
    "can_multi_conn": True,
    "can_trim": True,
    "can_zero": True,
    "block_size_minimum": 1,
    "block_size_preferred": 4 * KIB,
    "block_size_maximum": 32 * MIB,
    "contexts": ["base:allocation", "qemu:allocation-depth", "cowproof:state"],
}
READ_ONLY_INFO = {**INFO, "is_read_only": True, "can_fast_zero": False, "can_trim": False, "can_zero": False}


@pytest.mark.parametrize(("options", "expected"), [([], INFO), (["-r"], READ_ONLY_INFO)], ids=["writable", "readonly"])
def test_nbdinfo_tells_what_the_export_can_do(serve, base, options, expected):
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    told = json.loads(run(nbdinfo, "--json", serve(base, *options).uri))
    assert (told["protocol"], told["structured"]) == ("newstyle-fixed", True)
    (export,) = told["exports"]
    assert {key: export[key] for key in expected} == expected
    assert export["export-size"] == base.stat().st_size


PREFERRED = [("4K", 4 * KIB), ("32M", 32 * MIB), ("64M", 32 * MIB), ("2G", 32 * MIB)]


@pytest.mark.parametrize(("block_size", "preferred"), PREFERRED)
def test_nbdinfo_tells_the_overlays_block_size_as_far_as_a_request_can_be_as_long(
    serve, small_base, block_size, preferred
):
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    told = json.loads(run(nbdinfo, "--json", serve(small_base, "--cow-block-size", block_size).uri))
    (export,) = told["exports"]
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [1, preferred, 32 * MIB]


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbdinfo_tells_the_exact_size(serve, base, tcp):
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    assert run(nbdinfo, "--size", serve(base, tcp=tcp).uri) == f"{base.stat().st_size}\n"


def extent_map(uri):
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    found = json.loads(run(nbdinfo, "--map", "--json", uri))
    return [(entry["offset"], entry["length"], entry["type"]) for entry in found]


DATA, HOLE = 0, 3


def test_a_map_shows_the_holes_of_the_base_then_what_was_written_and_trimmed(serve, base_with_holes):
    qemu_io = need("qemu-io", package="qemu-utils")
    uri = serve(base_with_holes, "--cow-block-size", "64K").uri
    assert extent_map(uri) == [
        (0, MIB, DATA),
        (MIB, 2 * MIB, HOLE),
        (3 * MIB, BLOCK, DATA),
        (3 * MIB + BLOCK, MIB - BLOCK, HOLE),
    ]
    run(qemu_io, "-f", "raw", "-d", "unmap", "-c", "discard 0 64k", "-c", "write -P 7 2097252 100", uri)
    assert extent_map(uri) == [
        (0, BLOCK, HOLE),
        (BLOCK, MIB - BLOCK, DATA),
        (MIB, MIB, HOLE),
        (2 * MIB, BLOCK, DATA),
        (2 * MIB + BLOCK, MIB - BLOCK, HOLE),
        (3 * MIB, BLOCK, DATA),
        (3 * MIB + BLOCK, MIB - BLOCK, HOLE),
    ]


# nbdcopy


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_nbdcopy_gets_the_base(serve, base, tmp_path, tcp):
    nbdcopy = need("nbdcopy", package="libnbd-bin")
    run(nbdcopy, "--connections=4", "--requests=64", serve(base, tcp=tcp).uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == base.read_bytes()


@pytest.mark.parametrize("options", [["--cow-on-read", "on"], ["--overlay", "memory"], ["--cow-block-size", "4K"]])
def test_however_the_overlay_is_kept_a_copy_in_comes_out_again(serve, base, tmp_path, options):
    nbdcopy = need("nbdcopy", package="libnbd-bin")
    uri = serve(base, *options).uri
    run(nbdcopy, uri, tmp_path / "before")
    assert (tmp_path / "before").read_bytes() == base.read_bytes()
    new = bytearray(pattern(9, 0, base.stat().st_size))
    new[MIB : 2 * MIB] = bytes(MIB)
    (tmp_path / "new").write_bytes(new)
    run(nbdcopy, "--flush", tmp_path / "new", uri)
    run(nbdcopy, uri, tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == new


# qemu


def test_qemu_img_converts_compares_and_maps(serve, base_with_holes, tmp_path):
    qemu_img = need("qemu-img", package="qemu-utils")
    uri = serve(base_with_holes).uri
    run(qemu_img, "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == base_with_holes.read_bytes()
    assert "identical" in run(qemu_img, "compare", "-f", "raw", "-F", "raw", base_with_holes, uri)
    found = json.loads(run(qemu_img, "map", "-f", "raw", "--output=json", uri))
    assert [(entry["start"], entry["length"], entry["data"], entry["zero"]) for entry in found] == [
        (0, MIB, True, False),
        (MIB, 2 * MIB, False, True),
        (3 * MIB, BLOCK, True, False),
        (3 * MIB + BLOCK, MIB - BLOCK, False, True),
    ]


def test_qemu_img_converts_into_the_export(serve, small_base, tmp_path):
    qemu_img = need("qemu-img", package="qemu-utils")
    uri = serve(small_base).uri
    image = tmp_path / "new.img"
    image.write_bytes(pattern(9, 0, MIB) + bytes(MIB))
    run(qemu_img, "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    assert "identical" in run(qemu_img, "compare", "-f", "raw", "-F", "raw", image, uri)


QEMU_IO = [  # a command, where it changes something, and into which byte
    ("write -P 7 100 70000", slice(100, 70100), 7),
    ("write -z 65536 131072", slice(65536, 196608), 0),
    ("write -z 200000 1000", slice(200000, 201000), 0),
    ("write -z -u 262144 65536", slice(262144, 327680), 0),
    ("discard 393216 131072", slice(393216, 524288), 0),
    ("write -P 9 -f 400000 300000", slice(400000, 700000), 9),
    ("aio_write -P 3 1048577 100000", slice(1048577, 1148577), 3),
]


def test_what_qemu_io_writes_zeroes_and_discards_reads_back(serve, small_base):
    """Of one process, checked by another."""
    qemu_io = need("qemu-io", package="qemu-utils")
    nbdcopy = need("nbdcopy", package="libnbd-bin")
    uri = serve(small_base).uri
    expected = bytearray(small_base.read_bytes())
    commands = []
    for command, where, byte in QEMU_IO:
        commands += ["-c", command]
        expected[where] = bytes([byte]) * (where.stop - where.start)
    run(qemu_io, "-f", "raw", "-d", "unmap", *commands, "-c", "aio_flush", uri)
    told = run(qemu_io, "-f", "raw", "-c", "read -P 7 100 60000", "-c", "read -P 0 65536 131072", uri)
    assert "verification failed" not in told
    run(nbdcopy, uri, small_base.with_name("out"))
    assert small_base.with_name("out").read_bytes() == expected


# fio


def test_fio_reads_back_every_block_it_wrote(serve, tmp_path):
    """Four clients with 16 requests in flight, of sizes that cover blocks whole and in part; each part verified."""
    fio = need("fio", package="fio")
    if "nbd" not in run(fio, "--enghelp").split():
        refuse("fio was built without its nbd engine: install Debian's package fio")
    uri = serve("pattern:64M").uri
    job = ["--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=4k-256k", "--blockalign=4k", "--iodepth=16"]
    split = ["--numjobs=4", "--size=4m", "--offset_increment=16m", "--thread"]
    check = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=1", "--output-format=json"]
    # Else it keeps the state of each job's verification in a file, for a run that goes on where this one was stopped.
    told = run(fio, "--name=verify", *job, *split, *check, "--verify_state_save=0", cwd=tmp_path)
    jobs = json.loads(told[told.index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * 4
    assert all(job["read"]["total_ios"] > 0 for job in jobs), "nothing was verified"
    assert list(tmp_path.iterdir()) == [], "fio left files where it ran"


# nbd-client and nbdkit


def test_nbd_client_lists_the_export(serve, small_base):
    nbd_client = need("nbd-client", package="nbd-client")
    server = serve(small_base, "-e", "a disk")
    assert "a disk" in run(nbd_client, "-l", "-unix", server.socket)
    assert server.stop() == 0
    assert server.stderr.count("\n") == 1, (
        f"a client that leaves as it should is no cause for a warning: {server.stderr}"
    )


def test_nbdkit_can_stand_between_the_server_and_a_client(serve, base, tmp_path):
    nbdkit = need("nbdkit", package="nbdkit")
    need("nbdcopy", package="libnbd-bin")
    uri = serve(base).uri
    run(nbdkit, "-U", "-", "nbd", f"uri={uri}", "shared=true", "--run", f'nbdcopy "$uri" {tmp_path}/out')
    assert (tmp_path / "out").read_bytes() == base.read_bytes()


# Names, and read-only


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("name", ["disk", "a disk/of mine", "ä?&#%"])
def test_an_export_is_found_by_its_name_and_by_none(serve, small_base, name, tcp):
    nbdinfo = need("nbdinfo", package="libnbd-bin")
    server = serve(small_base, "-e", name, tcp=tcp)
    (export,) = json.loads(run(nbdinfo, "--list", "--json", server.uri))["exports"]
    assert export["export-name"] == name
    assert run(nbdinfo, "--size", server.uri) == f"{small_base.stat().st_size}\n"
    if not tcp:
        by_default = f"nbd+unix:///?socket={server.socket}"
        assert run(nbdinfo, "--size", by_default) == f"{small_base.stat().st_size}\n"
        run(nbdinfo, "--size", f"nbd+unix:///other?socket={server.socket}", status=1)


def test_a_read_only_export_refuses_to_be_written(serve, small_base, tmp_path):
    qemu_io = need("qemu-io", package="qemu-utils")
    nbdcopy = need("nbdcopy", package="libnbd-bin")
    uri = serve(small_base, "-r").uri
    run(qemu_io, "-f", "raw", "-c", "write 0 512", uri, status=1)
    run(nbdcopy, tmp_path / "base.img", uri, status=1)
    run(qemu_io, "-r", "-f", "raw", "-c", "read 0 512", uri)
    run(nbdcopy, uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == small_base.read_bytes()


def test_reads_are_kept_while_the_switch_of_copy_on_read_exists(serve, small_base, tmp_path):
    nbdcopy = need("nbdcopy", package="libnbd-bin")
    server = serve(small_base, "--cow-on-read", str(tmp_path / "switch"))
    run(nbdcopy, server.uri, tmp_path / "out")
    assert server.overlay_bytes() < BLOCK
    (tmp_path / "switch").touch()
    run(nbdcopy, server.uri, tmp_path / "out")
    assert server.overlay_bytes() >= small_base.stat().st_size
    assert (tmp_path / "out").read_bytes() == small_base.read_bytes()


# libnbd


@pytest.mark.parametrize("claim", CLAIMS)
def test_libnbd_finds_that(serve, small_base, claim):
    libnbd(claim, serve(small_base, "--cow-block-size", "64K").uri, small_base)


def test_libnbd_finds_that_the_largest_payload_is_served_and_more_refused(serve, tmp_path):
    large = tmp_path / "large.img"
    with large.open("wb") as file:
        file.write(b"base")
        file.truncate(40 * MIB)
    libnbd("the_largest_payload_is_served_and_more_is_refused_in_peace", serve(large).uri, large)
