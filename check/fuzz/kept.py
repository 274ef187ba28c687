"""How much an object keeps, whatever it calls it.

What is shared by all (types, functions, modules) is not looked into, so a codec has to be given nothing of the harness
but functions.
"""

from __future__ import annotations

import gc
from collections import deque
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import NamedTuple

_SHARED = (type, FunctionType, BuiltinFunctionType, CodeType, ModuleType)
_ATOMS = frozenset({int, bool, float, type(None)})
_TEXTS = frozenset({bytes, bytearray, str})
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)


class Kept(NamedTuple):
    """What is within reach of an object.

    content:  bytes of buffers, characters of strings
    items:    of lists, tuples, mappings and the like: what Python needs memory for whatever they hold
    """

    content: int
    items: int


def kept_by(root: object) -> Kept:
    """Everything, each thing once."""
    content = items = 0
    seen: set[int] = set()
    left = [root]
    while left:
        found = left.pop()
        kind = type(found)
        if kind in _ATOMS or id(found) in seen:
            continue
        seen.add(id(found))
        if kind in _TEXTS:
            content += len(found)  # type: ignore[arg-type]
        elif isinstance(found, _SHARED):
            pass
        elif isinstance(found, memoryview):
            left.append(found.obj)
        else:
            if isinstance(found, _CONTAINERS):
                items += len(found)
            if isinstance(found, dict):
                left += found  # the collector need not know of keys that are strings
            left += gc.get_referents(found)
    return Kept(content, items)
