"""The checkpoint that a node runs: the study's, or one that another node makes from it.

A variant has the neurons of the study's model under the same indices, so what is measured on it
keeps the identity of that model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.node import Output

if TYPE_CHECKING:
    from harness.stages.materials import Materials

FOLDER = "model"
"""Folder of the checkpoint in the output of the node that makes it."""
_INPUT = "checkpoint"


def inputs(m: "Materials") -> dict[str, Output]:
    """Return the checkpoint as an input, if a node makes it."""
    return {} if m.made is None else {_INPUT: m.made}


def made(folders: Mapping[str, Path]) -> Path | None:
    """Return the checkpoint among the folders of a node's inputs; None for the study's."""
    return folders[_INPUT] / FOLDER if _INPUT in folders else None
