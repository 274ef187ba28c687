"""`python -m check.live`: as `cowproof races`."""

from check.live.command import main

main()
