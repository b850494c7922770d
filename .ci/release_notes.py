"""Print the changelog's section of a tag; exit with a sentence if the tag is not the version."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str) -> str:
    """Return the section of the version that a tag names. Exits if it is not hq's version."""
    source = (ROOT / "hq" / "__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)[0]
    if tag != f"v{version}":
        sys.exit(f"The tag is {tag}, but hq.__version__ is {version}: tag v{version}, or raise it.")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^## \[{re.escape(version)}\].*?\n(.+?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None:
        sys.exit(f"CHANGELOG.md has no section [{version}]: name the changes of this release.")
    return section[1].strip() + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(notes(sys.argv[1]))
