"""An L1 path on a file, in a module that a new process imports quickly."""

from pathlib import Path

import numpy as np

from hq.probe.l1 import Columns, l1_path, smallest_c
from hq.probe.matrix import Streamed


def number_kept(path: Path, y: np.ndarray) -> int:
    """Fit a path out of core, and return the number of columns that its last solution uses."""
    (columns,) = Columns.parts(Streamed([np.load(path, mmap_mode="r")]), [np.arange(len(y))])
    Cs = smallest_c(columns, y) * np.array([1.1, 1.5, 2.0])
    return int(l1_path(columns, y, Cs.tolist()).n_nonzero[-1])
