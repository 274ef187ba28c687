"""What a twin of a TLA+ module consists of: the same things, by the same names, as functions on frozen states.

Names:   actions and operators are the module's in snake_case; invariants and properties keep the module's spelling,
         since configurations (`specs/*.cfg`) name them for both.
Shapes:  K is the module's constants, S its variables; a function of a client is a tuple, by the client's index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

K = TypeVar("K")
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Refinement(Generic[K, S]):
    """A refinement mapping: what state of a more abstract twin a state stands for."""

    abstract: Twin[Any, Any]
    mapping: Callable[[K, S], object]


@dataclass(frozen=True)
class Twin(Generic[K, S]):
    """A module.

    initial:            Init
    steps:              Next: the name of each action that is enabled, with the state it leads to, once for every way
                        in which TLC finds it
    action_properties:  properties of the form [][A]_v, as functions of two states
    """

    module: str
    constants: type[K]
    initial: Callable[[K], Iterator[S]]
    steps: Callable[[K, S], Iterator[tuple[str, S]]]
    invariants: Mapping[str, Callable[[K, S], bool]]
    action_properties: Mapping[str, Callable[[K, S, S], bool]] = field(default_factory=dict)
    refinements: Mapping[str, Refinement[K, S]] = field(default_factory=dict)


def put(items: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    """[items EXCEPT ![index] = value]."""
    return (*items[:index], value, *items[index + 1 :])


def put_all(items: tuple[T, ...], values: Iterable[tuple[int, T]]) -> tuple[T, ...]:
    """The same for several."""
    changed = list(items)
    for index, value in values:
        changed[index] = value
    return tuple(changed)
