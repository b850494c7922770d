"""Tables of named things: one line adds a scenario, a precision, a judge or a bench."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from hq.errors import HQError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things, of one kind.

    A name registered twice is a programming error (`ValueError`); a name looked up in vain is a
    user's (`HQError`, with the nearest known name).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a function or class to enter it under `name`."""

        def enter(thing: T) -> T:
            self.add(name, thing)
            return thing

        return enter

    def add(self, name: str, thing: T) -> None:
        """Enter `thing` under `name`."""
        if name in self._things:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._things[name] = thing

    def __getitem__(self, name: str) -> T:
        if name in self._things:
            return self._things[name]
        near = get_close_matches(name, self._things, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HQError(
            f"There is no {self.kind} {name!r}: {hint}known are {', '.join(sorted(self._things))}."
        )

    def __contains__(self, name: str) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)
