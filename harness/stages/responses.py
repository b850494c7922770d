"""The node with the responses to a study's questions: from a file if it has one, else sampled."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.stages import recorded, sample, served
from harness.store.node import Node
from hq.registry import Registry

if TYPE_CHECKING:
    from harness.stages.materials import Materials

SAMPLER_NODES: Registry[Callable[["Materials"], Node]] = Registry("sampler")
"""What declares the node of each sampler."""
SAMPLER_NODES.add("torch", sample.node)
SAMPLER_NODES.add("llamacpp", sample.node)
SAMPLER_NODES.add(served.SAMPLER, served.node)


def node(m: "Materials") -> Node:
    """Declare the responses to as many questions as the quota of pairs takes."""
    return sampled(m) if m.recorded is None else recorded.node(m, m.recorded)


def sampled(m: "Materials") -> Node:
    """Declare the responses by the study's sampler."""
    return SAMPLER_NODES[m.study.sampling.sampler](m)
