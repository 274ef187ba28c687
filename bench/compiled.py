"""A copy of cowproof whose hot modules are compiled, to be measured beside the one whose modules are not.

It is made once in a run, in the run's own folder, when its server is first started: that takes half a minute.

Source:  `impl/compiled.py`, which says what is compiled, and how.
Errors:  StartError, one line, when it cannot be made, and again whenever it is asked for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import impl
from impl import compiled
from impl.errors import StartError

LIMIT_S = 600.0
NAME = "cowproof-compiled"
# A program's folder is the first in which Python looks for what it imports.
PROGRAM = "serve.py"
OUTPUT = "output"
FAILED = "failed"


def lacking() -> str:
    """Why there can be none."""
    return (
        "it is what cowproof is here, which was compiled at install" if compiled.is_compiled() else compiled.lacking()
    )


def command(parent: Path) -> list[str]:
    """How the copy in `parent` is started, as `python -m impl.server` is; made if there is none."""
    folder = parent / NAME
    if not folder.exists():
        _make(folder)
    if (folder / FAILED).exists():
        said = [line for line in (folder / OUTPUT).read_text(errors="replace").splitlines() if line.strip()]
        raise StartError(f"it cannot be compiled: {said[-1] if said else 'mypyc said nothing'}")
    return [sys.executable, str(folder / PROGRAM)]


def _make(folder: Path) -> None:
    source = Path(impl.__file__).parent
    shutil.copytree(source, folder / "impl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "server" / "__main__.py", folder / PROGRAM)
    (folder / FAILED).touch()
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mypyc", *compiled.arguments()],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        try:
            status = process.wait(LIMIT_S)
        except BaseException:  # it and its compilers write into a folder that is about to be gone
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status == 0:
        (folder / FAILED).unlink()
