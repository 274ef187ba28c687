"""`python -m check.conform`: as `cowproof conform`."""

from check.conform.command import main

main()
