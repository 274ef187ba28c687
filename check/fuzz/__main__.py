"""`python -m check.fuzz`: the codec of impl/nbd against bytes that coverage leads to."""

from check.fuzz.command import main

main()
