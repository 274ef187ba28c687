"""`python -m check.view`: as `cowproof view`."""

from check.view.command import main

main()
