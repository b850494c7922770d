"""stages.lock: the source code of each stage at its present version.

The store does not hash code: a stage's version is part of the keys of its outputs. The lock holds a
digest of every module that a stage imports, directly or not. After a change of such a module, the
check fails until a developer declares its effect:

    the output can change:        raise `version` of the stage, then write the lock
    the output does not change:   write the lock

`python -m harness.experiments.lock` writes the lock. With `--check` it lists the stages and modules
that differ, and exits with code 1.
"""

import ast
import hashlib
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import harness.experiments
import harness.stages
from harness.store.node import GrowingLog, Stage

ROOT = Path(__file__).parents[2]
LOCK_FILE = Path(__file__).with_name("stages.lock")
_PACKAGES = ("hq", "harness")


class Locked(NamedTuple):
    """The content of stages.lock."""

    modules: dict[str, str]  # module: digest of its source
    stages: dict[str, tuple[int, str]]  # stage: version, digest of the modules that it imports


def stages() -> dict[Stage | GrowingLog, str]:
    """Return every stage and log, with the module that defines it."""
    defined: dict[Stage | GrowingLog, str] = {}
    for package in (harness.stages, harness.experiments):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for value in vars(module).values():
                if isinstance(value, Stage):
                    defined[value] = value.make.__module__
                elif isinstance(value, GrowingLog):
                    defined.setdefault(value, info.name)
    return dict(sorted(defined.items(), key=lambda item: (item[0].name, item[1])))


def locked(root: Path = ROOT) -> Locked:
    """Compute the lock of the source code in `root`."""
    source = _Source(root)
    closures = {s: source.closure((module, *s.sources)) for s, module in stages().items()}
    modules = {name: source.digest(name) for name in sorted(set().union(*closures.values()))}
    return Locked(
        modules,
        {
            stage.name: (stage.version, _digest(json.dumps([modules[m] for m in sorted(closure)])))
            for stage, closure in closures.items()
        },
    )


def read(path: Path = LOCK_FILE) -> Locked:
    """Read a lock file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Locked(
        content["modules"], {name: tuple(value) for name, value in content["stages"].items()}
    )


def write(lock: Locked, path: Path = LOCK_FILE) -> None:
    """Write a lock file."""
    path.write_text(json.dumps(lock._asdict(), indent=1) + "\n", encoding="utf-8")


def differences(lock: Locked, now: Locked) -> list[str]:
    """Return one sentence per stage with another version or source than the lock has."""
    changed = sorted(
        name
        for name in lock.modules.keys() | now.modules.keys()
        if lock.modules.get(name) != now.modules.get(name)
    )
    listed = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
    faults = []
    for name in sorted(lock.stages.keys() | now.stages.keys()):
        before, after = lock.stages.get(name), now.stages.get(name)
        if before is None or after is None:
            faults.append(f"stage {name} is {'new' if before is None else 'gone'}: write the lock.")
        elif before[0] != after[0]:
            faults.append(
                f"stage {name} has version {after[0]}, the lock {before[0]}: write the lock."
            )
        elif before != after:
            faults.append(
                f"the source of stage {name} changed ({listed}): raise its version if its output "
                "can change; then write the lock."
            )
    return faults


class _Source:
    """The modules of the project in a folder, and their imports."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._imports: dict[str, set[str]] = {}

    def closure(self, starts: tuple[str, ...]) -> frozenset[str]:
        """Return the modules `starts` and all project modules that they import, directly or not."""
        reached: set[str] = set()
        waiting = list(starts)
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += self._imported(name)
        return frozenset(reached)

    def digest(self, name: str) -> str:
        """Return the digest of a module's source, the same on every system."""
        return _digest(self._text(name))

    def _imported(self, name: str) -> set[str]:
        if name not in self._imports:
            self._imports[name] = {
                module
                for node in _executed(ast.parse(self._text(name)))
                for named in _names(node)
                for module in _with_packages(named)
                if module.split(".")[0] in _PACKAGES and self._path(module).is_file()
            }
        return self._imports[name]

    def _text(self, name: str) -> str:
        return self._path(name).read_text(encoding="utf-8")

    def _path(self, name: str) -> Path:
        base = self._root.joinpath(*name.split("."))
        return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the syntax nodes of a module except those in `if TYPE_CHECKING`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _executed(node)


def _names(node: ast.AST) -> list[str]:
    """Return the modules that a statement may import: `from a import b` may import a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _with_packages(name: str) -> list[str]:
    """Return a module and the packages that contain it, whose __init__ is imported too."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _main(arguments: list[str]) -> int:
    now = locked()
    if arguments == ["--check"]:
        faults = differences(read(), now)
        sys.stderr.writelines(f"{LOCK_FILE.name}: {fault}\n" for fault in faults)
        return 1 if faults else 0
    write(now)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
