"""`python -m impl.server`."""

import sys

try:
    from impl.server.command import main
except ModuleNotFoundError as missing:
    if missing.name != "click":
        raise
    # Most likely the system's Python, in a checkout whose own has not been made yet, or is not the one that was typed.
    sys.exit(
        "cowproof: this Python has no package click; type: make serve, which sets up .venv, "
        "and from then on: .venv/bin/python -m impl.server"
    )

main()
