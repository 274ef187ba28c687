"""The real server as a process of its own, and the programs of others that are its clients.

Every wait here is for something that can be seen (a file, a connection, an exit status), polled, and bounded.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DISTRIBUTION_PYTHON = "/usr/bin/python3"
SERVER = [sys.executable, "-m", "impl.server"]
KIB, MIB = 1 << 10, 1 << 20
BLOCK = 64 * KIB
START_LIMIT_S = 20.0
END_LIMIT_S = 10.0
CLIENT_LIMIT_S = 60.0
POLL_S = 0.005
ANNOUNCED = re.compile(r"^cowproof: serving .* at (\S+)$", re.MULTILINE)


def need(program, package):
    """The program's path. Without it the test is skipped, with what to install; on CI, where all is, it fails."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        refuse(f"{program} is missing: install the Debian package {package}")
    return found


def refuse(reason):
    """Skip; but a test that CI skips is a test that nobody runs."""
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def libnbd_python():
    """The interpreter that has libnbd's bindings: the distribution's own."""
    if not os.path.exists(DISTRIBUTION_PYTHON):
        refuse(f"{DISTRIBUTION_PYTHON} is missing: install the Debian packages python3 and python3-libnbd")
    if subprocess.run([DISTRIBUTION_PYTHON, "-c", "import nbd"], capture_output=True, check=False).returncode != 0:
        refuse("libnbd's Python bindings are missing: install the Debian package python3-libnbd")
    return DISTRIBUTION_PYTHON


def libnbd(claim, *arguments):
    """Hold one of libnbd_claims against a server."""
    run(libnbd_python(), ROOT / "tests" / "libnbd_claims.py", claim, *arguments)


def eventually(look, what, limit_s=END_LIMIT_S):
    """What `look` returns once that is true."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(POLL_S)
    return found


def run(*command, status=0, cwd=ROOT, **options):
    """Run a program in `cwd` to its end, which has to be `status`; what it wrote on standard output.

    Not all that other people's programs write is text: without file(1), nbdinfo 1.14 shows bytes of its memory.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        timeout=CLIENT_LIMIT_S,
        check=False,
        text=True,
        errors="replace",
        **options,
    )
    assert done.returncode == status, f"{command[0]}: status {done.returncode}, expected {status}: {done.stderr}"
    return done.stdout


@contextmanager
def nbdkit_serving(place, *options, size="1M"):
    """nbdkit with so much memory, at a Unix socket, while the context lasts."""
    ready = place.with_suffix(".pid")  # nbdkit(1): written once it accepts connections
    command = [need("nbdkit", "nbdkit"), "-f", "-U", place, "-P", ready, *options, "memory", size]
    with subprocess.Popen(command) as server:
        try:
            eventually(ready.exists, "nbdkit listens")
            yield
        finally:
            server.terminate()


def digest(path):
    """A checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ServerProcess:
    """A server that was started, in a folder of its own.

    base:   what it serves, as the command line has it
    under:  a command that changes something about itself, and then becomes the server
    server: the command that is the server
    """

    def __init__(self, folder, base, options, tcp=False, env=None, under=(), server=SERVER):
        self.folder = Path(folder)
        self.base = base
        self.socket = None if tcp else self.folder / "s"
        self.pidfile = self.folder / "pid"
        self._stderr = self.folder / "stderr"
        place = ["-i", "127.0.0.1", "-p", "0"] if tcp else ["-U", str(self.socket)]
        # Its overlay is there, too, where it can be told from other deleted files.
        self._env = {**os.environ, "TMPDIR": str(self.folder), **(env or {})}
        command = [*under, *server, *place, "-P", str(self.pidfile), *options, *([] if base is None else [str(base)])]
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=self._env
            )

    def wait_until_it_serves(self):
        eventually(self._serves, "the server says that it serves", START_LIMIT_S)
        found = ANNOUNCED.search(self.stderr)
        assert found is not None
        self.uri = found[1]
        return self

    def _serves(self):
        status = self.process.poll()
        assert status is None, f"the server ended with status {status}: {self.stderr}"
        return self.pidfile.exists() and ANNOUNCED.search(self.stderr)

    @property
    def pid(self):
        return self.process.pid

    @property
    def stderr(self):
        """What it has said so far."""
        return self._stderr.read_text(encoding="utf-8")

    def send(self, number):
        self.process.send_signal(number)

    def wait(self, limit_s=END_LIMIT_S):
        """Its exit status, which has to come by itself."""
        return self.process.wait(limit_s)

    def stop(self, number=signal.SIGTERM, limit_s=END_LIMIT_S):
        """End it in order; the exit status."""
        self.send(number)
        return self.wait(limit_s)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def status_number(self, field):
        """A number in /proc/PID/status, such as VmRSS, which is in KiB."""
        found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None, field
        return int(found[1])

    def descriptor_count(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def overlay(self):
        """Where the unnamed file that holds the overlay can be opened."""
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith(self._env["TMPDIR"]) and target.endswith("(deleted)"):
                return entry
        raise AssertionError("the server has no unnamed file open")

    def overlay_bytes(self):
        """The space that the overlay takes."""
        return os.stat(self.overlay()).st_blocks * 512


class Servers:
    """Starts servers, and ends those that are left."""

    def __init__(self):
        self._started = []

    def __call__(self, base=None, *options, **how):
        # Not pytest's own folders: a socket's path has at most 107 bytes.
        server = ServerProcess(tempfile.mkdtemp(prefix="cowproof-test-"), base, options, **how)
        self._started.append(server)
        return server.wait_until_it_serves()

    def end(self):
        for server in self._started:
            server.kill()
            shutil.rmtree(server.folder, ignore_errors=True)
