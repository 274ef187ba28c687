"""`python -m check.fuzz.engine TARGET FLAGS`: atheris on one target, in a process that is its own.

libFuzzer ends the process as it likes, and a module is watched only if it is imported after atheris: so nothing here
may import the codec before, and `command.py` runs this as a program. The flags are libFuzzer's.
"""

from __future__ import annotations

import importlib
import sys

WATCHED = "impl.nbd"


def main(arguments: list[str]) -> None:
    """Fuzz until libFuzzer has enough."""
    name, *flags = arguments
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=[WATCHED]):
        targets = importlib.import_module("check.fuzz.targets")
    atheris.Setup([sys.argv[0], *flags], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
