"""`python -m impl.server`."""

from impl.server.command import main

main()
