"""Rounding to the nearest code of a group: what a format costs without calibration."""

import torch
from jaxtyping import Float
from torch import Tensor

from hq.errors import HQError


def rounded(
    weight: Float[Tensor, "d_out d_in"], bits: int, group: int, sym: bool
) -> Float[Tensor, "d_out d_in"]:
    """Each weight at the nearest of 2^bits levels that its row has in its group of inputs.

    With `sym` the levels lie around zero, else between the group's ends. HQError where `group` does
    not divide the inputs.
    """
    if weight.shape[1] % group:
        raise HQError(f"Groups of {group} do not divide {weight.shape[1]} inputs.")
    groups = weight.view(len(weight), -1, group)
    high, top = groups.amax(-1, keepdim=True), (1 << bits) - 1
    low = groups.amin(-1, keepdim=True)
    if sym:
        high = torch.maximum(high.abs(), low.abs())
        low = -high
    low, high = low.clamp(max=0), high.clamp(min=0)  # zero stays exact
    scale = ((high - low) / top).clamp(min=torch.finfo(weight.dtype).tiny)
    zero = (top + 1) / 2 * torch.ones_like(low) if sym else (-low / scale).round()
    codes = (groups / scale + zero).round().clamp(0, top)
    dense: Tensor = (scale * (codes - zero)).flatten(1)
    return dense
