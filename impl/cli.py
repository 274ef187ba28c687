"""The command `cowproof`, which gathers the others.

Some of them check what this package ships, and it must not know who checks it. So they are found by what the
installed distributions declare: a plug-in of the group COMMANDS, its name the command's, its object a click command.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

from impl import __version__
from impl.compiled import is_compiled
from impl.errors import StartError
from impl.server.command import fail_in_one_line, serve

COMMANDS = "cowproof.commands"


class Commands(click.Group):
    """Our own commands, and those that are declared; these are imported only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All their names."""
        return sorted({*super().list_commands(ctx), *_declared()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; ours come first."""
        own = super().get_command(ctx, cmd_name)
        return own if own is not None else _load(cmd_name)


def _declared() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=COMMANDS)}


def _load(name: str) -> click.Command | None:
    entry = _declared().get(name)
    if entry is None:
        return None
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        return _lacking(name, error.name or "a package")
    assert isinstance(command, click.Command), f"{entry.value} is not a command"
    return command


def _lacking(name: str, package: str) -> click.Command:
    """What stands for a command that cannot be had: the checkers need packages that those who only serve do not."""
    reason = f"cowproof {name} needs {package}, which is not installed: pip install 'cowproof[check]', or {package}"

    @click.command(name, help=reason, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def refuse(arguments: tuple[str, ...]) -> None:
        raise StartError(reason)

    return refuse


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__ + ", compiled" * is_compiled(), prog_name="cowproof")
def cowproof() -> None:
    """A copy-on-write overlay for any read-only disk, served over NBD.

    `cowproof serve disk.img` gives many clients a shared, writable view of a disk that is never changed.
    """


cowproof.add_command(serve)


def main() -> None:
    """Entry point of the installed command."""
    fail_in_one_line(cowproof, None, "cowproof")
