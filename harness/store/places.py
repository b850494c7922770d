"""Where hq keeps what it can make again."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The cache: $HQ_CACHE, or the platform's own place for caches."""
    return Path(os.environ.get("HQ_CACHE") or user_cache_path("hq"))
