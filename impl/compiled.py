"""The modules that may be compiled to C, with mypyc, and what that takes.

They are what every request goes through. Nothing else changes: the same sources, as Python or as C, are the same
server. Compiled, a module is found before its source, and checks at run time what its annotations say.

Source:  mypyc's documentation, "Getting started"; `setup.py`, which compiles them when it is asked to.
Omits:   interpreted subclasses and replaced attributes: neither can be had of a compiled class.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

HOT = (
    "impl.base.file",
    "impl.nbd.replies",
    "impl.nbd.requests",
    "impl.overlay.blocks",
    "impl.overlay.overlay",
    "impl.overlay.parking",
    "impl.overlay.rangelock",
    "impl.overlay.statemap",
    "impl.overlay.store",
    "impl.server.commands",
    "impl.server.in_flight",
    "impl.server.loop",
    "impl.server.outbox",
    "impl.server.session",
)

# How strict types have to be is for our gate to say, not for whoever installs.
MYPY_OPTIONS = ("--config-file=",)
NEEDED = ("mypyc", "setuptools")


def arguments() -> list[str]:
    """Of mypyc, in the folder that `impl` is in."""
    return [*MYPY_OPTIONS, *(f"{module.replace('.', '/')}.py" for module in HOT)]


def lacking_compiler() -> str:
    """What to install before C can be compiled for this Python; nothing if all is there."""
    found = shlex.split(os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc"))
    if not found or shutil.which(found[0]) is None:
        return f"there is no C compiler ({' '.join(found[:1])}); on Debian: sudo apt-get install gcc python3-dev"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h is not installed; on Debian: sudo apt-get install python3-dev"
    return ""


def lacking() -> str:
    """What to install before anything can be compiled with what this Python has; nothing if all is there."""
    packages = [package for package in NEEDED if find_spec(package) is None]
    if packages:
        return f"{packages[0]} is not installed: pip install mypy setuptools"
    return lacking_compiler()


def is_compiled() -> bool:
    """Whether those that are imported here are."""
    found = find_spec(HOT[0])
    return found is not None and str(found.origin).endswith(tuple(EXTENSION_SUFFIXES))
