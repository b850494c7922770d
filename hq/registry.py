"""Registries of named entries, which installed packages extend by entry points."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, Generic, TypeVar

from hq.errors import HQError, first_line

T = TypeVar("T")
OWN = "hq"


class Registry(Generic[T]):
    """Entries of one kind by name.

    A name that is not registered is looked up among the entry points of installed packages, and the
    object of the entry point becomes the entry. Names of hq itself cannot be replaced. Entries that
    are expensive to import can be named by module and attribute, and are imported on first use.

    Args:
        kind: The word for an entry in messages.
        group: The group of entry points that extend the registry; empty if there is none.
        accepts: Whether the object of an entry point belongs to this registry; several registries
            may share a group.
        adopt: Returns the entry for the name and object of an entry point.
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
        self._entries: dict[str, T] = {}
        self._named: dict[str, str] = {}  # module:attribute of entries that are not imported yet
        self._packages: dict[str, str] = {}
        self._others: set[str] = set()  # entry points that belong to another registry of the group

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a function or class as `name`."""

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def add(self, name: str, entry: T) -> None:
        """Register an entry. Raises ValueError if the name is already registered."""
        self._require_new(name)
        self._entries[name] = entry

    def add_named(self, name: str, place: str) -> None:
        """Register the object at `module:attribute`, which is imported when the entry is read.

        Raises ValueError if the name is already registered.
        """
        self._require_new(name)
        self._named[name] = place

    def package(self, name: str) -> str:
        """Return the distribution that provides an entry, with its version."""
        _ = self[name]
        return self._packages.get(name) or f"{OWN} {version(OWN)}"

    def __getitem__(self, name: str) -> T:
        """Return an entry. Raises HQError, with the most similar known name, if there is none."""
        if name in self:
            if name not in self._entries:
                module, _, attribute = self._named[name].partition(":")
                self._entries[name] = self._adopt(name, getattr(import_module(module), attribute))
            return self._entries[name]
        known = sorted(self)
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise HQError(f"There is no {self.kind} {name!r}: {hint}known are {', '.join(known)}.")

    def __contains__(self, name: str) -> bool:
        if name in self._named or name in self._entries:
            return True
        if name not in self._others:
            for point in self._points():
                if point.name == name:
                    self._load(point)
                    break
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over all names: those of hq in the order of registration, then of packages."""
        for point in self._points():
            if not {point.name}.intersection(self._named, self._entries, self._others):
                self._load(point)
        return iter(list(dict.fromkeys([*self._named, *self._entries])))

    def _require_new(self, name: str) -> None:
        if name in self._entries or name in self._named:
            raise ValueError(f"{self.kind} {name!r} is registered twice")

    def _points(self) -> Iterator[EntryPoint]:
        return iter(entry_points(group=self._group) if self._group else ())

    def _load(self, point: EntryPoint) -> None:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            thing = point.load()
            if not self._accepts(thing):
                self._others.add(point.name)
                return
            if point.name not in self._entries:  # loading may have registered it
                self.add(point.name, self._adopt(point.name, thing))
        except Exception as error:  # the code of another package may raise anything
            raise HQError(
                f"The {self.kind} {point.name!r} of {package} cannot be loaded "
                f"({first_line(error)}): update, correct or remove that package."
            ) from error
        self._packages[point.name] = package
