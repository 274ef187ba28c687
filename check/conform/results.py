"""Runs the kit on the servers of this machine, and writes docs/conformance.md: `python -m check.conform.results`.

What a server fails stands there with what somebody who read the protocol's text for it has to say: `judged.py`. Of what
nobody has looked at yet, that is said.

Errors:  StartError when the page cannot be written. A server that is not installed, or does not start, has that in its
         place.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from check.conform.page import page
from check.conform.run import Result, chosen, line, run
from check.conform.subject import Settings, started
from check.history.peers import versions
from check.live import certificates
from check.live.servers import PACKAGES, find
from impl.client.uri import Target, Tls
from impl.errors import StartError
from impl.server.command import fail_in_one_line

COWPROOF = f"exec {shlex.quote(sys.executable)} -m impl.server"
NBD_SERVER = (
    r"""printf '[generic]\nunixsock = %s\n[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n%s\n' """
    """$unixsocket $base '{more}' > $TMPDIR/config; exec nbd-server -C $TMPDIR/config -p $pidfile"""
)
QCOW2 = "test -e $overlay || qemu-img create -q -f qcow2 -F raw -b $baseuri $overlay; exec qemu-nbd -t -e 64 "
TLS_ONLY = ("handshake", "tls", "transmission", "contexts", "status", "extended")
OURS = ("request", "zero-trim")
KEEPS = ("persistent",)


@dataclass(frozen=True)
class Server:
    """One that is tried.

    command: how it is started, where {certificates} is a folder
    shown:   the same, as somebody else would type it
    claims:  what it says that it does beyond the protocol
    """

    command: str
    shown: str
    claims: Sequence[str] = ()
    export: str = ""
    is_tls: bool = False


SERVERS = {
    "cowproof": Server(f"{COWPROOF} -U $unixsocket $baseuri", "cowproof serve -U $unixsocket $baseuri", OURS),
    "nbdkit file": Server(
        "exec nbdkit -f -U $unixsocket file $base", "exec nbdkit -f -U $unixsocket file $base", KEEPS
    ),
    "nbdkit cow": Server(
        "exec nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri",
        "exec nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri",
    ),
    "nbdkit cow, copying": Server(
        "exec nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri cow-on-read=true cow-on-cache=true",
        "exec nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri cow-on-read=true cow-on-cache=true",
    ),
    "qemu-nbd raw": Server(
        "exec qemu-nbd -t -e 64 -f raw -k $unixsocket $base",
        "exec qemu-nbd -t -e 64 -f raw -k $unixsocket $base",
        KEEPS,
    ),
    "qemu-nbd qcow2": Server(
        f"{QCOW2}-f qcow2 --discard=unmap -k $unixsocket $overlay",
        f"{QCOW2}-f qcow2 --discard=unmap -k $unixsocket $overlay",
        KEEPS,
    ),
    "nbd-server": Server(NBD_SERVER.format(more=""), "nbd-server -C CONFIG -p $pidfile", KEEPS, "disk"),
    "nbd-server -c": Server(
        NBD_SERVER.format(more="copyonwrite = true"),
        "nbd-server -C CONFIG -p $pidfile, with copyonwrite = true",
        (),
        "disk",
    ),
    "cowproof, TLS": Server(
        f"{COWPROOF} -U $unixsocket --tls on --tls-certificates {{certificates}} $base",
        "cowproof serve -U $unixsocket --tls on --tls-certificates DIR $base",
        OURS,
        is_tls=True,
    ),
    "nbdkit file, TLS": Server(
        "exec nbdkit -f -U $unixsocket --tls=on --tls-certificates={certificates} file $base",
        "exec nbdkit -f -U $unixsocket --tls=on --tls-certificates=DIR file $base",
        KEEPS,
        is_tls=True,
    ),
    "qemu-nbd raw, TLS": Server(
        "exec qemu-nbd -t -e 64 -f raw -k $unixsocket --tls-creds t --object "
        "tls-creds-x509,id=t,endpoint=server,verify-peer=no,dir={certificates} $base",
        "exec qemu-nbd -t -e 64 -f raw -k $unixsocket --tls-creds t --object "
        "tls-creds-x509,id=t,endpoint=server,verify-peer=no,dir=DIR $base",
        KEEPS,
        is_tls=True,
    ),
}


def results_of(server: Server, folder: Path, quick: bool) -> list[Result]:
    """What comes of each rule. StartError if there is no such server here."""
    for program in PACKAGES:
        if program != "openssl" and f" {program} " in f" {server.command} ":
            find(program)
    secrets = str(certificates.folder_in(folder)) if server.is_tls else ""
    command = server.command.replace("{certificates}", secrets)
    rules = chosen(TLS_ONLY if server.is_tls else ())
    settings = Settings(quick=quick, claims=frozenset(server.claims))
    wanted = Target(server.export, tls=Tls(verify_peer=False) if server.is_tls else None)
    with started(command, wanted, settings) as subject:
        return run(rules, lambda: subject, lambda result: click.echo(f"  {line(result)}", err=True))


@click.command(
    help="Try all rules on the servers of this machine, and write what came of it as a page.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("-o", "--output", metavar="FILE", help="Where to; else on standard output.")
@click.option("--only", "names", multiple=True, type=click.Choice(list(SERVERS)), help="This server; repeatable.")
@click.option("--quick", is_flag=True, help="Try less of what takes long.")
def results(output: str | None, names: Sequence[str], quick: bool) -> None:
    """Try them one by one."""
    found: dict[str, list[Result] | str] = {}
    with tempfile.TemporaryDirectory(prefix="conform-") as folder:
        for name in names or SERVERS:
            click.echo(name, err=True)
            begun_s = time.monotonic()
            try:
                found[name] = results_of(SERVERS[name], Path(folder), quick)
            except StartError as error:
                found[name] = str(error)
                click.echo(f"  {error}", err=True)
            click.echo(f"  {time.monotonic() - begun_s:.0f} s", err=True)
    text = page(found, {name: (server.shown, server.claims) for name, server in SERVERS.items()}, versions())
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"{output}: cannot be written: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> None:
    """`python -m check.conform.results`."""
    fail_in_one_line(results, arguments, "python -m check.conform.results")


if __name__ == "__main__":
    main()
