"""A bare installation of hq: Python sees the required packages and those of no extra.

Installing torch once more would take a gigabyte and minutes. A folder of links to the installed
packages that `dependencies` in pyproject.toml asks for, theirs included, shows the same.
"""

import shutil
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def required() -> dict[str, Distribution]:
    """The distributions that an installation without extras has, hq aside, by their names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pending = [Requirement(text) for text in project["dependencies"]]
    visited: set[tuple[str, str]] = set()
    distributions: dict[str, Distribution] = {}
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in visited:
                continue
            visited.add((name, extra))
            distributions[name] = distribution(name)
            needs = map(Requirement, distributions[name].requires or ())
            pending += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]
    return distributions


def link(folder: Path) -> Path:
    """Fills `folder` with links to the files of the required distributions."""
    folder.mkdir()
    for found in required().values():
        for path in found.files or ():
            first = path.parts[0]
            source, target = Path(str(found.locate_file(first))), folder / first
            if first not in ("..", "__pycache__") and not target.exists():
                _link(source, target)
    return folder


def _link(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
    elif sys.platform == "win32":  # where a symbolic link needs a privilege, and a junction none
        import _winapi

        _winapi.CreateJunction(str(source), str(target))
    else:
        target.symlink_to(source, target_is_directory=True)


if __name__ == "__main__":  # FOLDER VENV: links in FOLDER, on the path of a virtual environment
    folder, venv = map(Path, sys.argv[1:])
    link(folder)
    for site in (venv / "Lib", *(venv / "lib").glob("python*")):
        if (site / "site-packages").is_dir():
            (site / "site-packages" / "required.pth").write_text(f"{folder}\n", encoding="utf-8")
