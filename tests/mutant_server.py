"""The server, with one thing wrong: `mutant_server.py MUTANT OPTIONS...`, the mutant's name as in check/mutants.py."""

import sys

from servers import ROOT

sys.path.insert(0, str(ROOT))

from check.mutants import MUTANTS
from impl.overlay.overlay import Overlay
from impl.overlay.rangelock import RangeLock
from impl.server import export
from impl.server.command import main


def become(name):
    """Serve with this mutant's overlay in place of the shipped one."""
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    assert mutant.ranges is RangeLock, f"{name}: a server takes the shipped range locks only"
    assert mutant.overlay is not Overlay
    export.Overlay = mutant.overlay


if __name__ == "__main__":
    become(sys.argv.pop(1))
    main()
