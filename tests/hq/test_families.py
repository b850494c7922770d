"""Every family's down projections are found, in order, and nothing else is taken for one."""

import pytest
import torch
from torch import nn

from hq.errors import HQError
from hq.families import down_projections, family_of
from tests import tiny


def test_down_projections_take_h_and_give_the_residual_width(family: str) -> None:
    model = tiny.model(family)
    described = family_of(model.config.get_text_config().model_type)
    downs = down_projections(model.get_decoder(), described)
    assert len(downs) == tiny.LAYERS
    for down in downs:
        shape = down.weight.T.shape if family == "gpt2" else down.weight.shape
        assert shape == (64, tiny.D_FF)


def test_layers_come_in_the_order_in_which_they_run(family: str) -> None:
    model = tiny.model(family)
    downs = down_projections(
        model.get_decoder(), family_of(model.config.get_text_config().model_type)
    )
    ran: list[nn.Module] = []
    for down in downs:
        down.register_forward_hook(lambda module, *_: ran.append(module))
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]))
    assert ran == downs


def test_an_unknown_family_is_named_with_the_place_to_add_it() -> None:
    with pytest.raises(HQError, match=r"'bloom' is not known.*add a line to hq/families\.py"):
        family_of("bloom")
