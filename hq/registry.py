"""Tables of named things, which other installed packages extend by entry points."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, Generic, TypeVar

from hq.errors import HQError, first_line

T = TypeVar("T")
OWN = "hq"


class Registry(Generic[T]):
    """Names and what they stand for, all of one kind.

    A name that is not registered is looked up among the entry points of installed packages: the
    object of the entry point becomes the entry of that name. hq's own names cannot be replaced.

    Args:
        kind: what messages call an entry.
        group: the group of entry points that extend the registry; none if empty.
        accepts: whether the object of an entry point is for this registry; several registries may
            share a group.
        adopt: makes the entry of an accepted object, given its name.
    """

    def __init__(
        self,
        kind: str,
        group: str = "",
        accepts: Callable[[Any], bool] = lambda _: True,
        adopt: Callable[[str, Any], T] = lambda _, thing: thing,
    ) -> None:
        self.kind = kind
        self._group = group
        self._accepts = accepts
        self._adopt = adopt
        self._things: dict[str, T] = {}
        self._packages: dict[str, str] = {}
        self._others: set[str] = set()  # entry points of the group that are for another registry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a function or class to enter it under `name`."""

        def enter(thing: T) -> T:
            self.add(name, thing)
            return thing

        return enter

    def add(self, name: str, thing: T) -> None:
        """Enter `thing` under `name`. Raises ValueError if the name is taken."""
        if name in self._things:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._things[name] = thing

    def package(self, name: str) -> str:
        """The distribution and version that an entry comes from."""
        _ = self[name]
        return self._packages.get(name) or f"{OWN} {version(OWN)}"

    def __getitem__(self, name: str) -> T:
        """The entry of a name. Raises HQError, with the nearest known name, if there is none."""
        if name in self:
            return self._things[name]
        known = sorted(self)
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HQError(f"There is no {self.kind} {name!r}: {hint}known are {', '.join(known)}.")

    def __contains__(self, name: str) -> bool:
        if name not in self._things and name not in self._others:
            for point in self._points():
                if point.name == name:
                    self._load(point)
                    break
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        """All names: hq's own in the order of their registration, then those of other packages."""
        for point in self._points():
            if point.name not in self._things and point.name not in self._others:
                self._load(point)
        return iter(list(self._things))

    def _points(self) -> Iterator[EntryPoint]:
        return iter(entry_points(group=self._group) if self._group else ())

    def _load(self, point: EntryPoint) -> None:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            thing = point.load()
            if not self._accepts(thing):
                self._others.add(point.name)
                return
            if point.name not in self._things:  # loading may have registered it
                self.add(point.name, self._adopt(point.name, thing))
        except Exception as error:  # the code of another package may raise anything
            raise HQError(
                f"The {self.kind} {point.name!r} of {package} cannot be loaded "
                f"({first_line(error)}): update, correct or remove that package."
            ) from error
        self._packages[point.name] = package
