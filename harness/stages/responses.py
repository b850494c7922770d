"""The node with the responses to a study's questions: from a file if it has one, else sampled."""

from typing import TYPE_CHECKING

from harness.stages import recorded, sample
from harness.store.node import Node

if TYPE_CHECKING:
    from harness.stages.materials import Materials


def node(m: "Materials") -> Node:
    """Declare the responses to as many questions as the quota of pairs takes."""
    return sample.node(m) if m.recorded is None else recorded.node(m, m.recorded)
