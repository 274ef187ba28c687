"""`python -m bench`: as `cowproof bench`."""

from bench.command import main

main()
