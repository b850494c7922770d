"""Alignment of layers from weights alone, in cases with a known answer."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.models.alignment import MISSING, LayerRelation, map_layer, map_model, rounding_error
from hq.models.architectures import architecture_of
from hq.models.ffn_weights import FFN, of_checkpoint, of_modules
from hq.precisions.packed import recipe_of, round_to_nearest
from tests import tiny

D, WIDTH, GROUP = 128, 384, 64


def layer(seed: int = 0, gated: bool = True) -> FFN:
    """Random weights with inputs of different magnitude, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1 + torch.rand(D, generator=generator)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    return FFN(draw(WIDTH, D) * spread if gated else None, draw(WIDTH, D) * spread, draw(D, WIDTH))


def every(ffn: FFN, change: Callable[[Tensor], Tensor]) -> FFN:
    return FFN(None if ffn.gate is None else change(ffn.gate), change(ffn.up), change(ffn.down))


def quantized(ffn: FFN, bits: int) -> FFN:
    return every(ffn, lambda w: round_to_nearest(w, bits, GROUP, sym=False))


def claimed(ffn: FFN, bits: float) -> FFN:
    return ffn._replace(bits=bits)


def rescaled(ffn: FFN, factors: Tensor) -> FFN:
    return FFN(ffn.gate, ffn.up * factors[:, None], ffn.down / factors)


def orthogonal(size: int, seed: int = 3) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[
        0
    ]


def noisy(ffn: FFN, share: float, seed: int = 5) -> FFN:
    generator = torch.Generator().manual_seed(seed)
    return every(
        ffn,
        lambda w: (
            w
            + share
            * w.norm()
            * torch.nn.functional.normalize(
                torch.randn(w.shape, generator=generator).flatten(), dim=0
            ).view_as(w)
        ),
    )


def few(count: int, value: float) -> Tensor:
    factors = torch.ones(WIDTH)
    factors[torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))[:count]] = value
    return factors


def pruned(ffn: FFN, share: float) -> FFN:
    def cut(w: Tensor) -> Tensor:
        return w * (w.abs() >= w.abs().flatten().quantile(share))

    return every(ffn, cut)


SOURCE = layer()
ORDER = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(2))
SPREAD = (torch.rand(WIDTH, generator=torch.Generator().manual_seed(4)) + 0.5).exp()
SWAPPED = torch.arange(WIDTH)
SWAPPED[[3, 9]] = SWAPPED[[9, 3]]
SAME, SCALED, MOVED, MIXED, CHANGED, OTHER = LayerRelation
# name: variant, claimed bits, relation
CASES = {
    "the same": (SOURCE, 16, SAME),
    "rounded to FP16": (every(SOURCE, lambda w: w.half().float()), 16, SAME),
    "8 bits": (quantized(SOURCE, 8), 8, SAME),
    "4 bits": (quantized(SOURCE, 4), 4, SAME),
    "3 bits": (quantized(SOURCE, 3), 3, SAME),
    "2 bits": (quantized(SOURCE, 2), 2, SAME),
    "rescaled": (rescaled(SOURCE, SPREAD), 16, SCALED),
    "rescaled, 4 bits": (quantized(rescaled(SOURCE, SPREAD), 4), 4, SCALED),
    "a few rescaled, 4 bits": (quantized(rescaled(SOURCE, few(8, 1.5)), 4), 4, SCALED),
    "permuted": (SOURCE.at(ORDER), 16, MOVED),
    "permuted, 4 bits": (quantized(SOURCE.at(ORDER), 4), 4, MOVED),
    "permuted and rescaled": (rescaled(SOURCE, SPREAD).at(ORDER), 16, MOVED),
    "two swapped, 8 bits": (quantized(SOURCE.at(SWAPPED), 8), 8, MOVED),
    "residual rotated": (SOURCE.rotated(orthogonal(D)), 16, SAME),
    "residual rotated, 4 bits": (quantized(SOURCE.rotated(orthogonal(D)), 4), 4, SAME),
    "h rotated": (SOURCE._replace(down=SOURCE.down @ orthogonal(WIDTH)), 16, MIXED),
    "h rotated, 4 bits": (
        quantized(SOURCE._replace(down=SOURCE.down @ orthogonal(WIDTH)), 4),
        4,
        MIXED,
    ),
    "residual and h rotated": (
        SOURCE.rotated(orthogonal(D))._replace(
            down=SOURCE.rotated(orthogonal(D)).down @ orthogonal(WIDTH)
        ),
        16,
        MIXED,
    ),
    "reads rotated alone": (SOURCE.rotated(orthogonal(D))._replace(down=SOURCE.down), 16, MIXED),
    "reads rotated alone, 4 bits": (
        quantized(SOURCE.rotated(orthogonal(D))._replace(down=SOURCE.down), 4),
        4,
        MIXED,
    ),
    "down shuffled alone": (SOURCE._replace(down=SOURCE.down[:, ORDER]), 16, MIXED),
    "half pruned": (pruned(SOURCE, 0.5), 16, CHANGED),
    "a tenth pruned": (pruned(SOURCE, 0.1), 16, CHANGED),
    "tuned by 1%": (noisy(SOURCE, 0.01), 16, CHANGED),
    "tuned by 30%, 4 bits": (quantized(noisy(SOURCE, 0.3), 4), 4, CHANGED),
    "up alone rescaled": (SOURCE._replace(up=SOURCE.up * SPREAD[:, None]), 16, CHANGED),
    "gate rescaled": (SOURCE._replace(gate=SOURCE.gate * SPREAD[:, None]), 16, CHANGED),
    "another model": (layer(seed=9), 16, OTHER),
    "another model, 4 bits": (quantized(layer(seed=9), 4), 4, OTHER),
    "narrower": (SOURCE.at(torch.arange(WIDTH // 2)), 16, OTHER),
    "without a gate": (SOURCE._replace(gate=None), 16, OTHER),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_told_for_what_it_is(case):
    variant, bits, relation = CASES[case]
    found = map_layer(0, SOURCE, claimed(variant, bits))
    assert found.relation is relation, found.note
    assert found.is_aligned == (relation in (SAME, SCALED, MOVED))
    assert (found.note == "") == (relation is SAME and "rotated" not in case)


@pytest.mark.parametrize(
    "case", ["permuted", "permuted, 4 bits", "permuted and rescaled", "two swapped, 8 bits"]
)
def test_neurons_are_found_where_they_went(case):
    variant, bits, _ = CASES[case]
    found = map_layer(0, SOURCE, claimed(variant, bits))
    order = SWAPPED if "swapped" in case else ORDER
    torch.testing.assert_close(order[found.permutation], torch.arange(WIDTH))


@pytest.mark.parametrize(
    ("case", "off"),
    [("rescaled", 1e-5), ("rescaled, 4 bits", 0.08), ("permuted and rescaled", 1e-5)],
)
def test_factors_are_recovered(case, off):
    variant, bits, _ = CASES[case]
    found = map_layer(0, SOURCE, claimed(variant, bits))
    torch.testing.assert_close(found.factors, SPREAD, rtol=off, atol=0)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([16, 8, 4, 3, 2]), st.booleans())
def test_a_mapped_neuron_says_the_same(seed, bits, gated):
    """Permuted and divided by the factors, the variant's h is the source's, up to rounding."""
    source = layer(seed, gated)
    generator = torch.Generator().manual_seed(seed)
    order, factors = (
        torch.randperm(WIDTH, generator=generator),
        0.5 + torch.rand(WIDTH, generator=generator),
    )
    variant = rescaled(source, factors).at(order)
    stored = quantized(variant, bits) if bits < 16 else variant
    found = map_layer(0, source, claimed(stored, bits))
    assert found.relation is LayerRelation.PERMUTED
    x = torch.randn(D, generator=generator)
    h = (
        (source.up @ x)[None]
        if source.gate is None
        else (torch.sigmoid(source.gate @ x) * (source.up @ x))[None]
    )
    theirs = (
        variant.up @ x
        if variant.gate is None
        else torch.sigmoid(variant.gate @ x) * (variant.up @ x)
    )
    mapped = theirs[found.permutation] / factors
    assert found.matched.float().mean() > 0.95
    torch.testing.assert_close(mapped[found.matched], h[0][found.matched], rtol=1e-3, atol=1e-4)
    placed = found.permutation != MISSING
    assert (found.factors / factors).log().abs()[placed].median() < 0.1
    torch.testing.assert_close(order[found.permutation[placed]], torch.arange(WIDTH)[placed])


def test_a_pruned_neuron_is_not_found():
    gone = SOURCE.up.clone()
    gone[[5, 70]] = 0
    found = map_layer(0, SOURCE, claimed(SOURCE._replace(up=gone), 16))
    assert (~found.matched).nonzero().flatten().tolist() == [5, 70]
    # Their remainder has the same index.
    assert torch.equal(found.permutation, torch.arange(WIDTH))


def overwritten(ffn: FFN, neurons: list[int], by: FFN) -> FFN:
    """Replace these neurons by those of another layer."""
    gate, up, down = (part.clone() for part in (ffn.gate, ffn.up, ffn.down))
    gate[neurons], up[neurons], down[:, neurons] = (
        by.gate[neurons],
        by.up[neurons],
        by.down[:, neurons],
    )
    return FFN(gate, up, down)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("by", [layer(seed=9), every(SOURCE, torch.zeros_like)])
def test_a_neuron_that_was_cut_or_replaced_has_no_place(bits, moved, by):
    """It does not get its own index, which has another neuron in a permuted layer."""
    variant = overwritten(SOURCE, [5, 70], by)
    order = ORDER if moved else torch.arange(WIDTH)
    stored = variant.at(order)
    found = map_layer(0, SOURCE, claimed(quantized(stored, bits) if bits < 16 else stored, bits))
    gone = [5, 70]
    assert (~found.matched).nonzero().flatten().tolist() == gone
    assert (found.permutation == MISSING).nonzero().flatten().tolist() == gone
    others = found.permutation != MISSING
    torch.testing.assert_close(order[found.permutation[others]], torch.arange(WIDTH)[others])
    assert found.factors.isnan().nonzero().flatten().tolist() == gone
    assert found.is_aligned


def test_a_copy_of_another_neuron_is_not_the_one_that_it_replaced():
    copy = torch.arange(WIDTH)
    copy[106] = 89
    found = map_layer(0, SOURCE, claimed(SOURCE.at(copy), 16))
    assert (found.permutation == MISSING).nonzero().flatten().tolist() == [106]
    assert found.permutation[89] == 89


def test_false_accepts_and_false_refusals_are_rare():
    """200 models: no aligned layer is rejected and no other layer is accepted."""
    wrong = {"accepted": 0, "refused": 0}
    for seed in range(100):
        source = layer(seed)
        good = quantized(rescaled(source, few(20, 1.3)), (8, 4, 3, 2)[seed % 4])
        bits = (8, 4, 3, 2)[seed % 4]
        wrong["refused"] += not map_layer(0, source, claimed(good, bits)).is_aligned
        bad = quantized(layer(seed + 1000), bits)
        wrong["accepted"] += map_layer(0, source, claimed(bad, bits)).is_aligned
    assert wrong == {"accepted": 0, "refused": 0}


def test_shuffled_layers_are_named():
    source = [layer(seed) for seed in range(4)]
    variant = [source[0], source[2], source[1], quantized(source[3], 8)]
    found = list(map_model(source, [claimed(one, 8) for one in variant]))
    assert [one.relation for one in found] == [SAME, OTHER, OTHER, SAME]
    assert [one.note for one in found[1:3]] == [
        "it is the source's layer 2",
        "it is the source's layer 1",
    ]


def test_more_bits_explain_less():
    errors = [rounding_error(bits) for bits in (16, 8.5, 6.5, 5.5, 4.5, 3.3, 2.5, 1.6)]
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    "precision",
    [
        "fp16",
        "int8",
        "nf4",
        "fp8",
        "nvfp4",
        "mxfp4",
        "torchao-int4",
        "gptq-4",
        "gptq-8",
        "awq-4",
        "compressed-4",
    ],
)
def test_a_loaded_model_is_mapped_onto_its_checkpoint(precision, checkpoint, packed):
    if precision.startswith("torchao"):
        pytest.importorskip("torchao")
    path = packed(precision) if recipe_of(precision) else checkpoint("llama")
    with TorchBackend(path, precision, device="cpu") as backend:
        found = list(map_model(of_checkpoint(checkpoint("llama")), backend.ffns()))
    assert len(found) == tiny.LAYERS
    assert {one.relation for one in found} == {SAME}


def test_every_family_maps_onto_itself_and_onto_no_other(family, checkpoint):
    source = of_checkpoint(checkpoint(family))
    with TorchBackend(checkpoint(family), "nf4", device="cpu") as backend:
        assert {one.relation for one in map_model(source, backend.ffns())} == {SAME}
        other = [another(family, layer) for layer in range(tiny.LAYERS)]
        assert {one.relation for one in map_model(other, backend.ffns())} == {OTHER}


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_gguf_file_is_mapped_onto_its_checkpoint(family, kind, checkpoint, gguf):
    pytest.importorskip("llama_cpp")
    source = of_checkpoint(checkpoint(family))
    found = list(map_model(source, GGUFFile(gguf(family, kind)).ffns()))
    assert {one.relation for one in found} == {SAME}


def test_a_packed_checkpoint_is_no_source(packed):
    with pytest.raises(HQError, match="name the dense checkpoint"):
        of_checkpoint(packed("gptq-4"))[0]


def another(family: str, layer: int) -> FFN:
    """A layer of another model of the family."""
    model = tiny.model(family, seed=layer + 7)
    described = architecture_of(model.config)
    layers = model.get_decoder().get_submodule(described.layers)
    return of_modules(
        list(layers),
        described,
        model.config.get_text_config(),
        lambda m: m.weight.T if described.transposed else m.weight,
        lambda _: 16.0,
    )[layer]


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_weights_that_are_no_numbers_are_not_identical(part):
    broken = getattr(SOURCE, part).clone()
    broken[3, 5] = torch.nan
    assert not map_layer(0, SOURCE, claimed(SOURCE._replace(**{part: broken}), 4)).is_aligned
