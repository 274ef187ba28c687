"""The command `cowproof`, which gathers the others."""

from __future__ import annotations

import click

from impl import __version__
from impl.server.command import fail_in_one_line, serve


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cowproof")
def cowproof() -> None:
    """A copy-on-write overlay for any read-only disk, served over NBD.

    `cowproof serve disk.img` gives many clients a shared, writable view of a disk that is never changed.
    """


cowproof.add_command(serve)


def main() -> None:
    """Entry point of the installed command."""
    fail_in_one_line(cowproof, None, "cowproof")
