"""`python -m check.explore`: as `cowproof explore`."""

from check.explore.command import explore
from impl.server.command import fail_in_one_line

fail_in_one_line(explore, None, "python -m check.explore")
