"""The folder for files that hq can compute again."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return $HQ_CACHE, or the platform's folder for caches."""
    return Path(os.environ.get("HQ_CACHE") or user_cache_path("hq"))
