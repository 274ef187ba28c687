"""How the process gets its memory.

glibc takes each buffer above a limit from the kernel, and gives it back when it is freed: for a server that moves
256 KiB at a time, the page faults cost as much as the copying. With the limit raised, buffers are used again.

Source:  mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_KEPT_BYTES = 32 << 20
KEPT_BYTES = 64 << 20


def keep_large_buffers() -> None:
    """Have freed buffers kept for the next request; does nothing where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
