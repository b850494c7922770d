"""The store of this machine or of several: a folder below the cache, or a folder or URL given."""

import os
from pathlib import Path

from harness.store.remote import RemoteStore
from harness.store.store import Store
from hq.storage.places import cache_folder

STORE_VARIABLE = "HQ_STORE"


def store_url(given: str | None = None) -> str | None:
    """Return the store that is given, or the one in the environment; None for this machine's."""
    url = given or os.environ.get(STORE_VARIABLE) or None
    return str(Path(url).resolve()) if url is not None and "://" not in url else url


def open_store(given: str | None = None, fresh: bool = False) -> Store:
    """Open the store at a folder or URL; by default $HQ_STORE, else the folder below the cache.

    Raises HQError if it cannot be used.
    """
    url = store_url(given)
    if url is None:
        return Store(cache_folder() / "store", fresh)
    return RemoteStore(url, cache_folder() / "stores", fresh)
