"""The command `serve`: its options, what it prints, its exit statuses.

Source:  nbdkit(1) and nbdkit-cow-filter(1) for the names of options, where nbdkit has them.
Errors:  exit status 0 stopped cleanly, 1 could not serve, 2 wrong usage; with --run, that of the command. One line
         on standard error says why.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, cast

import click

from impl.base.interface import Base
from impl.base.open import open_base
from impl.closing import close_all
from impl.errors import StartError, UsageError
from impl.nbd.agreement import Tls
from impl.overlay.blocks import BLOCK_SIZE_MAX_BYTES, BLOCK_SIZE_MIN_BYTES
from impl.overlay.overlay import never
from impl.server import captive, listeners, logs, memory, standard
from impl.server.export import Export, ExportOptions, file_exists, make_export
from impl.server.server import Server
from impl.server.session import NO_TLS, TlsOffer
from impl.sizes import format_size, parse_size, quoted

STOPPED, COULD_NOT_SERVE, WRONG_USAGE = 0, 1, 2

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 10809
DEFAULT_BLOCK_SIZE = "4K"
DEFAULT_THREADS = 64
THREADS_MAX = 1024
CLIENTS_MAX = 1 << 20
EXPORT_NAME_MAX_BYTES = 4096
PARTING_S = 1.0

HELP = """Serve a shared, writable view of a disk that is never changed.

BASE is a path to a disk image or a block device; or memory:SIZE (all zeroes); or
pattern:SIZE[?seed=N&latency=10ms&jitter=5ms] (bytes that are a function of their offset, as slow as you like); or
what another NBD server has, nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=PATH, with TLS nbds.
Without BASE, a small demonstration disk is served. Several are served as NAME=BASE each, with an overlay of its own;
clients choose by name, and get the first one, or --exportname, if they do not.

Clients connect with any NBD client. Every client sees every other's writes; they are kept in an overlay that is
gone when the server stops. Sizes are bytes, or take K, M, G, T, P, E, each a power of 1024.
"""

EXAMPLES = (  # (what stands before our name, what behind it, what that does)
    ("", "disk.img", "serve at nbd://localhost"),
    ("", "-U /tmp/sock disk.img", "on a Unix socket"),
    ("", "disk.img --run 'nbdcopy $uri out.img'", "only while a command runs"),
    ("", "root=root.img data=data.img", "two disks, nbd://localhost/root and nbd://localhost/data"),
    ("TMPDIR=/big ", "--cow-on-read on disk.img", "overlay in /big, keep what is read"),
)

EPILOG = """SIGTERM, or Ctrl-C, stops the server: what is in flight is finished first. A second one does not wait.

A service manager may hand over sockets that listen already (LISTEN_FDS and LISTEN_PID, as systemd does). Then
these are served, and --unix, --ipaddr, --port and --stdio are refused.

\b
Exit status:
  0  told to stop, and all that was in flight is finished; or the client of --stdio has gone
  1  could not serve, or left without finishing; one line says why
  2  wrong usage
With --run, that of the command, or 128 and the number of the signal that ended it.
"""

# What newcomers are told to try, and the packages of Debian that have it.
CLIENTS = {"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "qemu-io": "qemu-utils"}


def block_size(text: str) -> int:
    """A size that a block may have, in bytes; click reports what is wrong with the text."""
    try:
        size = parse_size(text, "block size")
    except UsageError as error:
        raise click.BadParameter(str(error)) from None
    if not BLOCK_SIZE_MIN_BYTES <= size <= BLOCK_SIZE_MAX_BYTES or size & (size - 1):
        low, high = format_size(BLOCK_SIZE_MIN_BYTES), format_size(BLOCK_SIZE_MAX_BYTES)
        raise click.BadParameter(f"{text} is not a block size: expected a power of two from {low} to {high}")
    return size


def permission_bits(text: str) -> int:
    """Permission bits in octal; click reports what is wrong with the text."""
    try:
        bits = int(text, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o777:
        raise click.BadParameter(f"{quoted(text)} is no mode: expected three octal digits, such as 660")
    return bits


class Number(click.IntRange):
    """click's own says of `abc` that it is no integer range, and not which number would do."""

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or click's error, which names the option."""
        try:
            return int(super().convert(cast("int", value), param, ctx))
        except click.BadParameter:
            self.fail(f"{quoted(str(value))}: expected a number from {self.min} to {self.max}", param, ctx)


class Serve(click.Command):
    """Its examples begin with its own name, whichever way it was called."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The text, and then the examples."""
        super().format_help_text(ctx, formatter)
        examples = [(f"{before}{ctx.command_path} {arguments}", what) for before, arguments, what in EXAMPLES]
        width = max(len(example) for example, _ in examples)
        with formatter.section("Examples"):
            for example, what in examples:
                formatter.write(f"  {example:<{width}}   {what}\n")


@dataclass
class Options:
    """The command line, parsed."""

    bases: tuple[str, ...] = ()
    unix: str | None = None
    unix_mode: int | None = None
    ipaddr: str | None = None
    port: int | None = None
    exportname: str | None = None
    readonly: bool = False
    threads: int = DEFAULT_THREADS
    max_clients: int | None = None
    pidfile: str | None = None
    run: str | None = None
    exit_with_parent: bool = False
    stdio: bool = False
    cow_block_size: int = 0
    cow_on_read: str = "off"
    cow_on_cache: bool = False
    overlay: str | None = None
    overlay_reserve: bool = False
    record: str | None = None
    tls: str = "off"
    tls_certificates: str | None = None
    tls_verify_peer: bool = False
    tls_psk: str | None = None
    verbose: int = 0
    closed: frozenset[int] = frozenset()  # standard descriptors that were closed when we started


@click.command(
    "serve",
    cls=Serve,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("bases", metavar="[BASE | NAME=BASE...]", nargs=-1)
@click.option("-U", "--unix", metavar="PATH", help="Listen on a Unix socket instead of TCP; removed at the end.")
@click.option(
    "--unix-mode",
    type=permission_bits,
    metavar="MODE",
    help="Permission bits of the Unix socket, such as 660: who may write to it may connect.",
)
@click.option("-i", "--ipaddr", metavar="ADDRESS", help=f"Listen on this address; default {DEFAULT_HOST}.")
@click.option(
    "-p", "--port", type=Number(0, 65535), metavar="PORT", help=f"Default {DEFAULT_PORT}; 0 takes a free one."
)
@click.option(
    "-e",
    "--exportname",
    metavar="NAME",
    help="Name of the export, which is the default as well; of several, the one that is the default.",
)
@click.option("-r", "--readonly", is_flag=True, help="Refuse to write.")
@click.option(
    "-t",
    "--threads",
    type=Number(1, THREADS_MAX),
    default=DEFAULT_THREADS,
    metavar="N",
    help=f"Requests of one client that may wait for a slow base at once; default {DEFAULT_THREADS}.",
)
@click.option(
    "--max-clients",
    type=Number(1, CLIENTS_MAX),
    metavar="N",
    help="Serve so many clients at a time; others wait until one of them leaves.",
)
@click.option("-P", "--pidfile", metavar="FILE", help="Write the process number here once clients can connect.")
@click.option(
    "--run",
    metavar="COMMAND",
    help="Serve only while COMMAND runs in a shell; it is given $uri, $unixsocket, $port, $exportname, and $nbd, "
    "which is $uri in qemu's older form. Its exit status is ours. Unless told where to listen, on a private Unix "
    "socket.",
)
@click.option("-s", "--stdio", is_flag=True, help="Serve one client, on standard input and output.")
@click.option("--exit-with-parent", is_flag=True, help="Stop when the process that started this one has gone.")
@click.option(
    "--cow-block-size",
    type=block_size,
    metavar="SIZE",
    default=DEFAULT_BLOCK_SIZE,
    help=f"The unit that is copied, a power of two from 4K to 2G; default {DEFAULT_BLOCK_SIZE}.",
)
@click.option(
    "--cow-on-read",
    metavar="off|on|/PATH",
    default="off",
    help="Keep what is read from the base in the overlay: never, always, or while a file exists at /PATH; default off.",
)
@click.option("--cow-on-cache", is_flag=True, help="Let a client's cache request copy into the overlay.")
@click.option(
    "--overlay",
    type=click.Choice(["memory"]),
    metavar="memory",
    help="Keep the overlay in memory; without this, in an unnamed file in $TMPDIR, or /var/tmp.",
)
@click.option("--overlay-reserve", is_flag=True, help="Allocate all the space the overlay can ever need, now.")
@click.option(
    "--tls",
    type=click.Choice([mode.value for mode in Tls]),
    default=Tls.OFF.value,
    metavar="off|on|require",
    help="Let clients encrypt, or require it; default off.",
)
@click.option(
    "--tls-certificates",
    metavar="DIRECTORY",
    help="Where server-cert.pem and server-key.pem are; and, to verify clients, ca-cert.pem.",
)
@click.option("--tls-verify-peer", is_flag=True, help="Serve only clients with a certificate that ca-cert.pem signed.")
@click.option(
    "--tls-psk",
    metavar="FILE",
    help="In place of certificates: lines NAME:KEY, the key in hex, for clients who have one of them. Python 3.13.",
)
@click.option(
    "--record",
    metavar="FILE",
    help="Append each request and its answer as a line of JSON to a new file, for `cowproof history check`.",
)
@click.option("-v", "--verbose", count=True, help="Say what clients do; twice: each request, too.")
@click.pass_context
def serve(context: click.Context, /, **parameters: object) -> None:
    """Check what click has parsed, and serve."""
    options = Options(closed=context.obj or frozenset(), **parameters)  # type: ignore[arg-type]
    logs.set_up(options.verbose)
    try:
        check(options)
        status = run(options)
    except UsageError as error:
        raise click.UsageError(str(error), context) from None
    leave(status)


def leave(status: int) -> NoReturn:
    """Exit, without waiting for threads that are left: one may wait for a base that never answers."""
    standard.finish()
    if threading.active_count() > 1:
        os._exit(status)
    sys.exit(status)


def check(options: Options) -> None:
    """Refuse what makes no sense together. UsageError says what, and what would."""
    for option, value, expected in (
        ("--unix", options.unix, "the path of a socket"),
        ("--ipaddr", options.ipaddr, "an address"),
        ("--pidfile", options.pidfile, "the path of a file"),
        ("--run", options.run, "a command"),
        ("--record", options.record, "the path of a file"),
        ("--tls-certificates", options.tls_certificates, "the path of a folder"),
        ("--tls-psk", options.tls_psk, "the path of a file"),
    ):
        if value == "":
            raise UsageError(f"{option} '': expected {expected}")
    if options.unix is not None and (options.ipaddr is not None or options.port is not None):
        raise UsageError("--unix cannot go with --ipaddr or --port: one server listens in one place")
    if options.unix_mode is not None and options.unix is None:
        raise UsageError("--unix-mode needs --unix")
    if options.stdio and (options.unix or options.ipaddr or options.port is not None or options.run):
        raise UsageError("--stdio serves one client on standard input, so it cannot listen or --run a command")
    if options.cow_on_read not in ("on", "off") and not options.cow_on_read.startswith("/"):
        raise UsageError(f"--cow-on-read {options.cow_on_read!r}: expected off, on, or a path that starts with /")
    check_tls(options)
    if options.exportname is not None:
        check_name("--exportname", options.exportname)
    named = named_bases(options)
    for name in named:
        check_name("the name of an export", name)
    if len(named) > 1 and options.record is not None:
        raise UsageError("--record writes what clients see of one export: serve one at a time")


def check_tls(options: Options) -> None:
    """Refuse TLS that nobody could be known by, and what belongs to TLS without it."""
    if options.tls_psk is not None and (options.tls_certificates is not None or options.tls_verify_peer):
        raise UsageError(
            "--tls-psk knows clients by their keys, so it goes without --tls-certificates and --tls-verify-peer"
        )
    if (options.tls == Tls.OFF.value) != (options.tls_certificates is None and options.tls_psk is None):
        raise UsageError("--tls on and --tls require need --tls-certificates or --tls-psk, and those need one of them")
    if options.tls_verify_peer and options.tls == Tls.OFF.value:
        raise UsageError("--tls-verify-peer needs --tls on, or --tls require")


def check_name(what: str, name: str) -> None:
    """Refuse what cannot be the name of an export."""
    if "\0" in name or len(os.fsencode(name)) > EXPORT_NAME_MAX_BYTES:
        raise UsageError(f"{what}: expected at most {EXPORT_NAME_MAX_BYTES} bytes, none of them zero")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {ascii(os.fsencode(name))[1:]}: expected UTF-8") from None


def named_bases(options: Options) -> dict[str, str | None]:
    """The base of each export, by name. UsageError where it is not clear which is which."""
    if not options.bases:
        return {options.exportname or "": None}
    parsed = [split_name(text) for text in options.bases]
    if len(parsed) == 1 and parsed[0][0] is None:
        return {options.exportname or "": parsed[0][1]}
    named: dict[str, str | None] = {}
    for name, base in parsed:
        if name is None:
            raise UsageError(f"{quoted(base)}: of several exports, each needs a name: expected NAME={base}")
        if name in named:
            raise UsageError(f"{quoted(name)} is the name of two exports: expected different ones")
        named[name] = base
    if options.exportname is not None and options.exportname not in named:
        raise UsageError(f"--exportname {options.exportname!r}: expected one of {', '.join(map(repr, named))}")
    return named


def split_name(text: str) -> tuple[str | None, str]:
    """NAME=BASE, or a base that has no name; a file that is called like that is a file."""
    name, equals, base = text.partition("=")
    if not equals or any(character in name for character in "/:?") or os.path.lexists(text):
        return None, text
    return name, base


def default_of(options: Options) -> str:
    """The name of the export that clients get who name none."""
    return next(iter(named_bases(options))) if options.exportname is None else options.exportname


def run(options: Options) -> int:
    """Serve until told to stop; the exit status."""
    memory.keep_large_buffers()
    if options.exit_with_parent:
        captive.exit_with_parent()
    named = named_bases(options)
    keys = keys_of(options)
    with ExitStack() as cleanup:
        bases = opened(named, cleanup)
        exports = {name: make_export(base, export_options(options, name)) for name, base in bases.items()}
        server = Server(
            exports, default_of(options), options.threads, tls=tls_offer(options, keys), max_clients=options.max_clients
        )
        command = None if options.run is None else captive.Captive(options.run)
        # Whoever sees a socket of ours, a pid file or the command may send us a signal: it must end all three in order.
        server.stop_on_signals(on_second=command.kill if command else lambda: None)
        for export in exports.values():
            if export.recording is not None:
                cleanup.callback(export.recording.close)
        sockets = listen(options, cleanup)
        for listener in sockets:
            cleanup.callback(listener.close)
        show_pid(options, cleanup)
        if command is not None:
            return run_captive(server, command, sockets, options, keys)
        if options.stdio:
            client, finish = captive.client_on_stdio(options.closed)
            is_clean = server.run(only_client=client)
            if is_clean:
                finish()
        else:
            announce(exports, named, partial(uri_of, sockets[0], options, keys))
            is_clean = server.run(sockets)
        return STOPPED if is_clean else COULD_NOT_SERVE


def opened(named: Mapping[str, str | None], cleanup: ExitStack) -> dict[str, Base]:
    """What is to be served, by its exports' names."""
    bases: dict[str, Base] = {}
    cleanup.callback(part_with, bases)
    for name, text in named.items():
        bases[name] = open_base(text)
    return bases


def part_with(bases: Mapping[str, Base]) -> None:
    """Close them. Another server is to be told goodbye ("Terminating the transmission phase"); if it hears us."""
    close_all((base.close for base in bases.values()), PARTING_S)


def keys_of(options: Options) -> Mapping[str, bytes]:
    """The pre-shared keys of clients, by their names, read once; StartError for a file that is of no use."""
    if options.tls_psk is None:
        return {}
    from impl.psk import read_keys  # noqa: PLC0415 - it takes long to load

    return read_keys(options.tls_psk)


def tls_offer(options: Options, keys: Mapping[str, bytes]) -> TlsOffer:
    """What clients are offered. StartError if there are no certificates, or it cannot be had with keys."""
    mode = Tls(options.tls)
    if keys:
        from impl import psk  # noqa: PLC0415 - it takes long to load

        return TlsOffer(mode, psk.server_context(keys))
    if options.tls_certificates is not None:
        from impl.tls import server_context  # noqa: PLC0415 - it takes long to load

        return TlsOffer(mode, server_context(options.tls_certificates, options.tls_verify_peer))
    return NO_TLS


def run_captive(
    server: Server,
    command: captive.Captive,
    sockets: Sequence[socket.socket],
    options: Options,
    keys: Mapping[str, bytes],
) -> int:
    """Serve while a command runs; its exit status."""
    uri = uri_of(sockets[0], options, keys, default_of(options))
    command.start(variables(sockets[0], uri, options), server.stop)
    server.run(sockets)
    return command.end()


def show_pid(options: Options, cleanup: ExitStack) -> None:
    """Write the pid file, if one is wanted."""
    if options.pidfile is not None:
        captive.write_pidfile(options.pidfile)
        cleanup.callback(captive.remove_pidfile, options.pidfile)


def export_options(options: Options, name: str) -> ExportOptions:
    """How an export of this command line is made."""
    switches = {"off": never, "on": lambda: True}
    return ExportOptions(
        name=name,
        read_only=options.readonly,
        block_size=options.cow_block_size,
        copy_on_read=switches.get(options.cow_on_read) or file_exists(options.cow_on_read),
        copy_on_cache=options.cow_on_cache,
        store=options.overlay or "temporary",
        reserve=options.overlay_reserve,
        record=options.record,
    )


def listen(options: Options, cleanup: ExitStack) -> list[socket.socket]:
    """The sockets to accept clients from: none for --stdio; for a command that needs no known place, a private one."""
    handed_over = listeners.inherited(os.environ)
    placed = options.unix is not None or options.ipaddr is not None or options.port is not None
    if handed_over:
        if placed or options.stdio:
            what = "--stdio" if options.stdio else "--unix, --ipaddr and --port"
            raise UsageError(f"{what} cannot go with sockets that a service manager hands over")
        return handed_over
    if options.stdio:
        return []
    if options.unix is not None:
        return [listeners.listen_unix(options.unix, options.unix_mode)]
    if options.run is not None and not placed:
        return [listeners.listen_unix(f"{private_directory(cleanup)}/socket")]
    port = DEFAULT_PORT if options.port is None else options.port
    return listeners.listen_tcp(options.ipaddr or DEFAULT_HOST, port)


def private_directory(cleanup: ExitStack) -> str:
    """A new directory that nobody else can enter, removed at the end."""
    try:
        return cleanup.enter_context(tempfile.TemporaryDirectory(prefix="cowproof-"))
    except OSError as error:
        raise StartError(f"cannot make a folder for a private socket: {error.strerror}; try --unix PATH") from None


def variables(listener: socket.socket, uri: str, options: Options) -> dict[str, str]:
    """What a command that is run finds in its environment."""
    name = listener.getsockname()
    is_unix = listener.family == socket.AF_UNIX
    return {
        "uri": uri,
        "nbd": f"nbd:unix:{name}" if is_unix else f"nbd:localhost:{name[1]}",
        "unixsocket": os.path.abspath(name) if is_unix else "",
        "port": "" if is_unix else str(name[1]),
        "exportname": default_of(options),
    }


def uri_of(listener: socket.socket, options: Options, keys: Mapping[str, bytes], name: str) -> str:
    """Where a client finds an export; with the first of the keys, if it needs one."""
    is_secure = options.tls == Tls.REQUIRE.value
    if not is_secure or options.tls_psk is None:
        return listeners.uri_of(listener, name, is_secure)
    return listeners.uri_of(listener, name, is_secure, next(iter(keys)), options.tls_psk)


def announce(
    exports: Mapping[str, Export], named: Mapping[str, str | None], uri_of_export: Callable[[str], str]
) -> None:
    """Tell people where to connect, and newcomers how."""
    lines = []
    for name, export in exports.items():
        base, uri = named[name], uri_of_export(name)
        what = "a demonstration disk" if base is None else base
        lines.append(f"cowproof: serving {one_line(what)} ({format_size(export.info.size)}) at {uri}")
    if None in named.values():
        quoted = shlex.quote(uri)
        lines += [
            "In another terminal, try:",
            f"  nbdinfo {quoted}",
            f"  nbdcopy {quoted} - | grep -a -o -E '[[:print:]]{{20,}}' | head",
            f"  qemu-io -f raw -c 'write -P 7 8M 70000' -c 'read -P 7 8M 70000' {quoted}",
            "Every client sees the writes; the disk underneath is never changed. Ctrl-C stops.",
            *missing_clients(shutil.which),
        ]
    standard.say("\n".join(lines))


def missing_clients(find: Callable[[str], str | None]) -> list[str]:
    """A line that says how to get the clients that people are told to try; none, if `find` finds them all."""
    missing = [client for client in CLIENTS if find(client) is None]
    if not missing:
        return []
    packages = " ".join(dict.fromkeys(CLIENTS[client] for client in missing))
    return [f"Not found here: {', '.join(missing)}; on Debian, type: sudo apt-get install {packages}"]


def main(arguments: list[str] | None = None) -> None:
    """`python -m impl.server`: as `cowproof serve`."""
    fail_in_one_line(serve, arguments, "python -m impl.server")


def one_line(text: str) -> str:
    """The text with line breaks made visible."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def fail_in_one_line(command: click.Command, arguments: list[str] | None, name: str) -> None:
    """Run a command; whatever a user can cause ends in one line on standard error and an exit status."""
    try:
        closed = standard.set_up()
        command.main(arguments, prog_name=name, standalone_mode=False, obj=closed)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help, which is not for one line
        standard.say(error.format_message())
        sys.exit(WRONG_USAGE)
    except click.UsageError as error:
        misused = name if error.ctx is None else error.ctx.command_path
        complain(f"{unfolded(error.format_message())} (try {misused} --help)", WRONG_USAGE)
    except UsageError as error:
        complain(f"{error} (try {name} --help)", WRONG_USAGE)
    except standard.OutputError as error:
        if error.nobody_reads:  # as with head(1): they have read enough
            sys.exit(COULD_NOT_SERVE)
        complain(str(error), COULD_NOT_SERVE)
    except StartError as error:
        complain(str(error), COULD_NOT_SERVE)
    finally:
        standard.finish()


def complain(message: str, status: int) -> NoReturn:
    """Say what is wrong, and exit."""
    standard.say(f"cowproof: {one_line(message)}")
    sys.exit(status)


def unfolded(text: str) -> str:
    """The lines of one of click's messages as one line."""
    return " ".join(text.split())
