"""Why something cannot be made at a path."""

from __future__ import annotations

import errno
import os


def why_not_made(error: OSError, path: str) -> str:
    """The kernel says of a missing folder what it says of a missing file; the file would be ours to make."""
    folder = os.path.dirname(path) or os.curdir
    if error.errno == errno.ENOENT and not os.path.isdir(folder):
        return f"there is no folder {folder}"
    return error.strerror or str(error)
