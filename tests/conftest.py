"""Fixtures that more than one file of tests uses."""

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from servers import KIB, MIB, Servers, need, refuse

from impl.base.pattern import pattern

BYTES = (bytes, bytearray, memoryview)
SHOWN_BYTES = 16


def pytest_addoption(parser):
    parser.addoption(
        "--lin-seconds",
        type=recorded_seconds,
        default=1.5,
        metavar="N",
        help="how long each test of linearizability records (default: %(default)s)",
    )


def recorded_seconds(text):
    """As `cowproof history record --seconds` has it."""
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: expected 0.1 to 86400 seconds")
    return seconds


def pytest_configure():
    """On CI, pytest shows every difference whole, and to compute that of two small disks takes it minutes. That this is
    CI still shows: the variable is there, though it is empty.
    """
    for name in ("CI", "BUILD_NUMBER"):
        if name in os.environ:
            os.environ[name] = ""


def pytest_assertrepr_compare(op, left, right):
    """Long byte strings that are not equal: where."""
    if op == "==" and isinstance(left, BYTES) and isinstance(right, BYTES) and max(len(left), len(right)) > SHOWN_BYTES:
        return difference(bytes(left), bytes(right))
    return None


def difference(left, right):
    """The lengths, the first byte that differs, and what stands there."""
    common = min(len(left), len(right))
    first = next((at for at in range(common) if left[at] != right[at]), common)
    shown = [side[first : first + SHOWN_BYTES].hex(" ") or "the end" for side in (left, right)]
    return [
        f"{len(left)} bytes == {len(right)} bytes",
        f"the first difference is at byte {first}:",
        f"left:  {shown[0]}",
        f"right: {shown[1]}",
    ]


@pytest.fixture
def serve():
    """serve(base, *options, tcp=False, env={}, under=(), server=SERVER): a process that answers, ended after it."""
    servers = Servers()
    yield servers
    servers.end()


@pytest.fixture
def short_path():
    """A folder whose path is short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="cowproof-test-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def small_disk(short_path):
    """A folder on a file system of 8 MiB."""
    mount, umount = need("mount", package="mount"), need("umount", package="mount")
    disk = short_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=8m", "cowproof-test", disk], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        refuse(f"a small disk cannot be mounted: run the tests as root, where mounting is allowed ({done.stderr})")
    yield disk
    # Lazily: a server that is about to be killed may still have its overlay there.
    subprocess.run([umount, "--lazy", disk], check=True)


@pytest.fixture(params=[4 * MIB, 3 * MIB + 12345], ids=["whole-blocks", "odd-size"])
def base(request, tmp_path):
    """A file whose every byte tells where it belongs; its size a multiple of the block, and of nothing."""
    path = tmp_path / "base.img"
    path.write_bytes(pattern(1, 0, request.param))
    return path


@pytest.fixture
def small_base(tmp_path):
    """The same, of one size, for tests to which it makes no difference."""
    path = tmp_path / "base.img"
    path.write_bytes(pattern(2, 0, 2 * MIB))
    return path


@pytest.fixture
def base_with_holes(tmp_path):
    """4 MiB: data in [0, 1M) and in [3M, 3M+64K), holes elsewhere."""
    path = tmp_path / "holes.img"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
        file.write(pattern(3, 0, MIB))
        file.seek(3 * MIB)
        file.write(pattern(3, MIB, 64 * KIB))
    return path
