"""Fixtures that more than one file of tests uses."""

import shutil
import tempfile
from pathlib import Path

import pytest
from servers import KIB, MIB, Servers

from impl.base.pattern import pattern


@pytest.fixture
def serve():
    """serve(base, *options, tcp=False, env={}, under=()): a server process that answers, ended after the test."""
    servers = Servers()
    yield servers
    servers.end()


@pytest.fixture
def short_path():
    """A folder whose path is short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="cowproof-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


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
