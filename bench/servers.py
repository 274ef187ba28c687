"""The servers that are compared, each with settings worth showing, and how one of them is started and ended.

Every overlay is a file in the folder that the server is given, so that all are on one file system. A base with latency
is, for nbdkit, a file behind its own delay filter; for qemu-nbd, that nbdkit as the backing file; for cowproof, its
pattern, which takes 12 us to compute 64 KiB where a file takes about 10 to read.

Source:  nbdkit(1), nbdkit-cow-filter(1), nbdkit-delay-filter(1), qemu-nbd(8), qemu-img(1), nbd-server(5).
Units:   seconds, milliseconds and bytes, where a name says so.
Errors:  StartError, one line, when a server does not come up. Should the benchmark be killed without a chance to end
         what it started, nbdkit and cowproof go, too; qemu-nbd and nbd-server stay, for they have no option for that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from bench import compiled
from check.live import certificates
from check.live.servers import COWPROOF, ROOT, find, missing, path_of, uri_of
from impl.client.link import Deadline, open_socket, shake_hands
from impl.client.uri import parse
from impl.errors import StartError
from impl.nbd.client_handshake import ClientHandshake
from impl.sizes import format_size

START_LIMIT_S = 30.0
END_LIMIT_S = 60.0
POLL_S = 0.001
SOCKET_PATH_MAX_BYTES = 107
UPSTREAM_THREADS = 64
CONNECTIONS_MAX = 256
COPY_ON_READ = "copy-on-read"
TLS = "tls"


@dataclass(frozen=True, slots=True)
class Base:
    """What an overlay is put over: a file, as it is, or as if each read of it took `latency_ms`."""

    path: Path
    size_bytes: int
    latency_ms: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server has its files, and over what it is to serve.

    mode:         COPY_ON_READ, TLS, or nothing
    block_bytes:  the unit that is copied; 0, its default
    """

    folder: Path
    base: Base
    mode: str = ""
    block_bytes: int = 0

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / "s"

    @property
    def pidfile(self) -> Path:
        """Where it says who it is, if it goes into the background."""
        return self.folder / "pid"

    @property
    def certificates(self) -> str:
        """The folder of those of the run."""
        return str(certificates.folder_in(self.folder.parent))


@dataclass(frozen=True, slots=True)
class Server:
    """A program under measurement.

    command:  how it is started at a place; what has to be there before is made by `before`, which may leave a process
    needs:    what else has to be installed or done, if anything, in a sentence
    lacks:    why it cannot do rows with a trait that `bench.rows` names
    remarks:  what has to be said beside its figures in rows with a trait
    only:     rows with one of these traits, where the setting makes a difference; empty, all
    setting_of: the server of which this is another setting
    export:   what stands behind `nbd+unix:///`
    """

    name: str
    programs: tuple[str, ...]
    shown: str
    command: Callable[[Place], list[str]]
    before: Callable[[Place, ExitStack], int | None] = lambda place, stack: None
    needs: Callable[[], str] = str
    lacks: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    only: frozenset[str] = frozenset()
    setting_of: str = ""
    export: str = ""
    daemon: bool = False

    def uri(self, place: Place) -> str:
        """Where clients find it."""
        uri = uri_of(place.socket).replace("///", f"///{self.export}")
        if place.mode != TLS:
            return uri
        parameters = {"tls-certificates": place.certificates, "tls-hostname": certificates.HOSTNAME}
        return f"{uri.replace('nbd', 'nbds', 1)}&{urlencode(parameters, safe='/')}"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    helpers:  processes that its base needs
    start_s:  from its start until its first handshake was done
    """

    server: Server
    uri: str
    pid: int
    start_s: float
    helpers: tuple[int, ...] = ()

    def has_ended(self) -> bool:
        """Whether it has gone, though nobody asked it to."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return True
        return text.rpartition(")")[2].split()[0] == "Z"


# How each is started.


def _cowproof(*options: str, is_compiled: bool = False) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        program = _compiled(place) if is_compiled else COWPROOF
        slow = f"pattern:{place.base.size_bytes}?latency={place.base.latency_ms}ms"
        mode = ["--cow-on-read", "on"] if place.mode == COPY_ON_READ else []
        mode += ["--tls", "require", "--tls-certificates", place.certificates] if place.mode == TLS else []
        mode += [f"--cow-block-size={format_size(place.block_bytes)}"] * bool(place.block_bytes)
        base = slow if place.base.latency_ms else str(place.base.path)
        return [*program, "--exit-with-parent", "-U", str(place.socket), *options, *mode, base]

    return command


def _compiled(place: Place) -> list[str]:
    """One copy for all places of a run."""
    return compiled.command(place.folder.parent)


def _make_compiled(place: Place, stack: ExitStack) -> int | None:
    """It is no part of the start, which is timed."""
    _compiled(place)
    return None


def _nbdkit(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        mode = ["cow-on-read=true"] if place.mode == COPY_ON_READ else []
        mode += [f"cow-block-size={place.block_bytes}"] * bool(place.block_bytes)
        tls = ["--tls=require", f"--tls-certificates={place.certificates}"] if place.mode == TLS else []
        return [*_nbdkit_over(place.base, place.socket, *tls, *options, "--filter=cow"), *mode]

    return command


def _nbdkit_over(base: Base, socket: Path, *options: str) -> list[str]:
    command = [find("nbdkit"), "-f", "--exit-with-parent", "-U", str(socket), *options]
    if base.latency_ms:
        # Without noextents, qemu-nbd would be told that the file is one hole, and would never read it.
        delay = ["--filter=noextents", "--filter=delay"]
        return [*command, *delay, "file", str(base.path), f"rdelay={base.latency_ms}ms"]
    return [*command, "file", str(base.path)]


def _qemu_nbd(*options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        image = place.folder / "overlay.qcow2"
        shared = ["-t", "-e", str(CONNECTIONS_MAX), "-k", str(place.socket)]
        if place.mode == COPY_ON_READ:
            nodes = ["driver=copy-on-read", "file.driver=qcow2", "file.discard=unmap"]
            nodes += ["file.file.driver=file", f"file.file.filename={image}"]
            nodes += ["file.file.aio=io_uring"] * ("--aio=io_uring" in options)
            return [find("qemu-nbd"), *shared, "--image-opts", ",".join(nodes)]
        if place.mode == TLS:
            credentials = f"tls-creds-x509,id=t,endpoint=server,verify-peer=no,dir={place.certificates}"
            shared += ["--object", credentials, "--tls-creds", "t"]
        return [find("qemu-nbd"), *shared, "--discard=unmap", *options, "-f", "qcow2", str(image)]

    return command


def _make_qcow2(place: Place, stack: ExitStack) -> int | None:
    """A new image; over a base with latency, nbdkit serves that."""
    backing, helper = str(place.base.path), None
    if place.base.latency_ms:
        upstream = place.folder / "u"
        command = _nbdkit_over(place.base, upstream, "-r", "-t", str(UPSTREAM_THREADS))
        helper = stack.enter_context(_process(command, place.folder)).pid
        backing = uri_of(upstream)
        _wait_until_it_answers(backing, None, place.folder)
    overlay = place.folder / "overlay.qcow2"
    block = ["-o", f"cluster_size={place.block_bytes}"] * bool(place.block_bytes)
    create = [find("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, *block, str(overlay)]
    done = subprocess.run(create, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"qemu-img failed: {done.stderr.strip()}")
    return helper


def _nbd_server(place: Place) -> list[str]:
    config = place.folder / "config"
    lines = ["[generic]", f"unixsock = {place.socket}", "[disk]", f"exportname = {place.base.path}"]
    lines += ["copyonwrite = true", f"cowdir = {place.folder}", "flush = true", "fua = true", ""]
    config.write_text("\n".join(lines), encoding="utf-8")
    return [find("nbd-server"), "-C", str(config), "-p", str(place.pidfile)]


_NBDKIT = {"trim": "its trim frees no space"}
_OWN_COPIES = "what one connection writes, no other sees, and it is gone with its connection"

SERVERS = [
    Server("cowproof", (), "cowproof serve BASE", _cowproof()),
    Server(
        "cowproof-64k",
        (),
        "cowproof serve --cow-block-size=64K BASE",
        _cowproof("--cow-block-size=64K"),
        setting_of="cowproof",
    ),
    Server(
        "cowproof-t16",
        (),
        "cowproof serve -t 16 BASE",
        _cowproof("-t", "16"),
        only=frozenset({"slow"}),
        setting_of="cowproof",
    ),
    Server(
        "cowproof-memory",
        (),
        "cowproof serve --overlay memory BASE",
        _cowproof("--overlay", "memory"),
        only=frozenset({"overlay"}),
        setting_of="cowproof",
    ),
    Server(
        compiled.NAME,
        (),
        "cowproof serve BASE, its hot modules compiled with mypyc",
        _cowproof(is_compiled=True),
        _make_compiled,
        needs=compiled.lacking,
        setting_of="cowproof",
    ),
    Server("nbdkit", ("nbdkit",), "nbdkit --filter=cow file BASE", _nbdkit(), remarks=_NBDKIT),
    Server(
        "nbdkit-t64",
        ("nbdkit",),
        "nbdkit -t 64 --filter=cow file BASE",
        _nbdkit("-t", "64"),
        remarks=_NBDKIT,
        setting_of="nbdkit",
    ),
    Server(
        "qemu-nbd",
        ("qemu-nbd", "qemu-img"),
        "qemu-nbd --discard=unmap -f qcow2 OVERLAY",
        _qemu_nbd(),
        _make_qcow2,
    ),
    Server(
        "qemu-nbd-uring",
        ("qemu-nbd", "qemu-img"),
        "qemu-nbd --discard=unmap --aio=io_uring -f qcow2 OVERLAY",
        _qemu_nbd("--aio=io_uring"),
        _make_qcow2,
        setting_of="qemu-nbd",
    ),
    Server(
        "nbd-server",
        ("nbd-server",),
        "nbd-server -c BASE",
        _nbd_server,
        lacks={
            "several": _OWN_COPIES,
            "kept": _OWN_COPIES,
            "slow": "it serves files only, and none of them is slow",
            COPY_ON_READ: "it has no copy-on-read",
            TLS: "its TLS takes a configuration of its own, which is not made here",
            "8T": "its map takes 8 GiB of memory for each connection",
            "block size": "its blocks are of 4 KiB, always",
        },
        remarks={"overlay": "it corrupts data when it has more than one request in flight"},
        export="disk",
        daemon=True,
    ),
]


def absent(server: Server, slow: bool = False, tls: bool = False) -> str:
    """What has to be done before it can be measured, if anything: mostly, what to install."""
    needed = [*server.programs, *(["nbdkit"] if slow and server.name.startswith("qemu-nbd") else [])]
    needed += ["openssl"] * tls
    lacking = [program for program in needed if path_of(program) is None]
    return missing(lacking) if lacking else server.needs()


# Starting and ending.


@contextmanager
def started(server: Server, base: Base, mode: str, parent: Path, block_bytes: int = 0) -> Iterator[Running]:
    """A server of its own, with an overlay of its own, until it has gone with all that it left."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    place = Place(folder, base, mode, block_bytes)
    if len(os.fsencode(place.socket)) > SOCKET_PATH_MAX_BYTES:
        raise StartError(f"{place.socket} is too long for a socket: name a shorter --directory")
    try:
        with ExitStack() as stack:
            helper = server.before(place, stack)
            began_s = time.monotonic()
            if server.daemon:
                pid = stack.enter_context(_daemon(server, place))
            else:
                process = stack.enter_context(_process(server.command(place), folder))
                pid = process.pid
                _wait_until_it_answers(server.uri(place), process, folder)
            helpers = () if helper is None else (helper,)
            yield Running(server, server.uri(place), pid, time.monotonic() - began_s, helpers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Ours, for a server: what is installed has its bytecode beside it, and so has, once started, what is measured."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@contextmanager
def _process(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment(), "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        except OSError as error:
            raise StartError(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Freeing an overlay of some GiB takes a file system seconds, and a server is not gone until it has."""
    process.terminate()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _daemon(server: Server, place: Place) -> Iterator[int]:
    """A server that goes into the background: its number is in its pid file."""
    with (place.folder / "log").open("ab") as log:
        subprocess.run(
            server.command(place), cwd=place.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
    try:
        _wait_until_it_answers(server.uri(place), None, place.folder)
        yield int(place.pidfile.read_text(encoding="ascii"))
    finally:
        _end_by_number(place.pidfile)


def _end_by_number(pidfile: Path) -> None:
    with suppress(OSError, ValueError):
        pid = int(pidfile.read_text(encoding="ascii"))
        os.kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + END_LIMIT_S
        while time.monotonic() < deadline_s and Path(f"/proc/{pid}").exists():
            time.sleep(POLL_S)


def _wait_until_it_answers(uri: str, process: subprocess.Popen[bytes] | None, folder: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            with idle_connections(uri, 1):
                return
        except OSError as error:
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline_s:
                said = " / ".join((folder / "log").read_text(encoding="utf-8", errors="replace").splitlines())
                raise StartError(f"it does not come up: {said or error}") from None
        time.sleep(POLL_S)


@contextmanager
def idle_connections(uri: str, count: int) -> Iterator[None]:
    """Connections that have shaken hands and ask for nothing."""
    target = parse(uri)
    with ExitStack() as stack:
        for _ in range(count):
            deadline = Deadline(START_LIMIT_S)
            sock = stack.enter_context(open_socket(target, deadline))
            handshake = ClientHandshake(target.export, tls=target.tls is not None)
            stack.callback(shake_hands(sock, handshake, deadline, target).close)
        yield
