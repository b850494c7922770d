"""NeuronSpace, and models whose layers have different widths at every step of the library."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hq.backends.permuted import PermutedBackend
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.neurons.space import NO_EXPERT, NeuronBlock, NeuronSpace
from hq.probe.controls import matched_neurons
from hq.probe.identify import identify
from hq.stats.auroc import auroc
from hq.suppress.bake import bake
from hq.tracing.traces import Traces, TraceWriter, describe
from tests import decoders, tiny
from tests.hq.models.test_architectures import far, naive_cett

WIDTHS = (128, 128, 256, 256)
MIXED = NeuronSpace(
    (
        NeuronBlock(layer=0, width=6),
        NeuronBlock(layer=1, width=3, expert=0),
        NeuronBlock(layer=1, width=3, expert=1),
        NeuronBlock(layer=2, width=4),
    )
)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_flat_and_locate_are_inverse(widths):
    space = NeuronSpace.of_widths(widths)
    pairs = [(layer, i) for layer, width in enumerate(widths) for i in range(width)]
    layers, indices = np.array(pairs).T
    np.testing.assert_array_equal(space.flat(layers, indices), np.arange(len(space)))
    found = space.locate(np.arange(len(space)))
    np.testing.assert_array_equal(found.layer, layers)
    np.testing.assert_array_equal(found.within, indices)
    assert (found.expert == NO_EXPERT).all()
    assert [s.stop - s.start for s in space.slices] == widths
    assert space.is_rectangular == (len(set(widths)) == 1)


def test_experts_are_blocks_of_their_own():
    assert len(MIXED) == 16
    assert int(MIXED.flat(1, 2, expert=1)) == 11
    layer, expert, within = MIXED.locate([5, 11, 12])
    assert list(zip(layer, expert, within, strict=True)) == [(0, -1, 5), (1, 1, 2), (2, -1, 0)]
    assert MIXED.block_of(11) == 2
    assert MIXED.shape == (16,)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ((3, 0, None), "(3, 0)"),
        ((0, 6, None), "(0, 6)"),
        ((0, -1, None), "(0, -1)"),
        ((-1, 0, None), "(-1, 0)"),
        ((1, 0, None), "(1, 0)"),
        ((1, 0, 2), "(1, expert 2, 0)"),
        ((0, 0, 0), "(0, expert 0, 0)"),
    ],
)
def test_neurons_outside_are_named(place, named):
    layer, index, expert = place
    with pytest.raises(HQError) as error:
        MIXED.flat([0, layer], [0, index], None if expert is None else [NO_EXPERT, expert])
    assert named in str(error.value)
    with pytest.raises(HQError, match="16 neurons"):
        MIXED.locate(16)


@pytest.mark.parametrize(
    "blocks",
    [
        (),
        (NeuronBlock(layer=1, width=2),),
        (NeuronBlock(layer=0, width=2), NeuronBlock(layer=0, width=2)),
        (NeuronBlock(layer=0, width=2), NeuronBlock(layer=0, width=2, expert=0)),
        (NeuronBlock(layer=0, width=2, expert=1),),
        (NeuronBlock(layer=1, width=2), NeuronBlock(layer=0, width=2)),
    ],
)
def test_blocks_are_in_order_and_complete(blocks):
    with pytest.raises(ValueError, match="ordered by"):
        NeuronSpace(blocks)


def test_an_identity_writes_blocks_only_where_it_needs_them():
    stated = {"name": "m", "fingerprint": "f", "architecture": "a", "norm_digest": ""}
    plain = ModelIdentity.of(**stated, space=NeuronSpace.rectangular(2, 3))
    assert json.loads(plain.model_dump_json()).keys() == {*stated, "n_layers", "d_ff"}
    mixed = ModelIdentity.of(**stated, space=MIXED)
    text = mixed.model_dump_json()
    assert json.loads(text)["blocks"][:2] == [
        {"layer": 0, "width": 6},
        {"layer": 1, "width": 3, "expert": 0},
    ]
    assert ModelIdentity.model_validate_json(text) == mixed
    assert mixed.space == MIXED
    with pytest.raises(ValueError, match="do not fit"):
        mixed.model_copy(update={}).model_validate(mixed.model_dump() | {"d_ff": 5})


def test_a_set_of_schema_1_is_read(tmp_path):
    """The first version of the file called the digest of the norms "kin"."""
    committed = Path(__file__).parents[2] / "results" / "smollm2-facts" / "neurons.json"
    fields = json.loads(committed.read_text(encoding="utf-8"))
    assert fields["schema_version"] == 2
    digest = fields["model"].pop("norm_digest")
    old = fields | {"schema_version": 1, "model": fields["model"] | {"kin": digest}}
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    neurons = NeuronSet.load(tmp_path / "old.json")
    assert neurons.model.norm_digest == digest != ""
    assert neurons == NeuronSet.load(committed)
    neurons.save(tmp_path / "neurons.json")
    assert json.loads((tmp_path / "neurons.json").read_text(encoding="utf-8")) == json.loads(
        committed.read_text(encoding="utf-8")
    )


@pytest.fixture(scope="module", params=sorted(decoders.RAGGED))
def ragged(request, tmp_path_factory) -> Path:
    """A checkpoint with layers of different widths; read only."""
    folder = tmp_path_factory.mktemp("ragged") / request.param
    return decoders.save(decoders.RAGGED[request.param](), folder)


@pytest.fixture(scope="module")
def backend(ragged):
    with TorchBackend(ragged, device="cpu", token_budget=64) as opened:
        yield opened


def test_the_identity_has_the_widths(ragged):
    found = checkpoint_identity(ragged)
    assert (found.n_layers, found.d_ff, found.space.widths) == (4, 256, WIDTHS)
    assert found.n_neurons == sum(WIDTHS)


def test_traces_are_the_definition_written_naively(backend, tmp_path):
    texts = tiny.exchanges()
    info = describe(backend, texts, ("sum", "contribution"), ("answer",))
    writer = TraceWriter(tmp_path, info)
    for batch in backend.trace(texts, info.measures, info.spans):
        writer.write(batch)
    writer.close(backend.norms)
    traces = Traces.open(tmp_path)
    matrix = traces.matrix("sum", "answer")
    for row, text in enumerate(texts):
        assert far(matrix[row], naive_cett(backend, text)) < 2e-6
    sums = [matrix[:, block].sum(axis=1) for block in backend.identity.space.slices]
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    weights = [down.weight for down in backend.downs]
    norms = torch.cat([torch.linalg.vector_norm(weight, dim=0) for weight in weights])
    np.testing.assert_allclose(traces.norms, norms.numpy(), rtol=1e-6)


def test_neurons_are_identified_in_the_block_that_tells(backend):
    texts = tiny.exchanges(60, seed=3)
    (features,) = ordered(backend, texts)
    flat = int(backend.identity.space.flat(3, 200))
    labels = features.values[:, flat] > np.median(features.values[:, flat])
    found = identify(features, labels, max_fraction=0.02, folds=3)
    assert flat in found.flat_positive
    assert (3, 200) in [(n.layer, n.index) for n in found.positive]
    assert NeuronSet.model_validate_json(found.model_dump_json()) == found
    assert auroc(found.score(features), labels) > 0.95


def ordered(backend, texts):
    batches = list(backend.trace(texts))
    order = np.argsort(np.concatenate([batch.rows for batch in batches]))
    values = np.concatenate([batch.features("sum", "answer").values for batch in batches])[order]
    first = batches[0].features("sum", "answer")
    return (type(first)(values, "sum", "answer", first.model, first.precision),)


def test_controls_match_within_a_block():
    space = NeuronSpace.of_widths(WIDTHS)
    magnitudes = np.random.default_rng(0).lognormal(size=len(space))
    chosen = space.flat([0, 1, 2, 3], [127, 0, 255, 0])
    drawn = matched_neurons(chosen, magnitudes, space, draws=50, seed=0)
    np.testing.assert_array_equal(space.block_of(drawn), np.tile([0, 1, 2, 3], (50, 1)))


def logits(backend, texts):
    return np.concatenate([rows for _, rows in sorted(backend.logits(texts), key=lambda r: r[0])])


FACTORS = {(0, 5): 0.0, (3, 200): 2.5}


def test_a_neuron_of_a_wide_layer_is_scaled(backend):
    texts = tiny.exchanges(3)
    plain = logits(backend, texts)
    with backend.scale(FACTORS):
        scaled = logits(backend, texts)
    before = [down.weight.detach().clone() for down in backend.downs]
    try:
        for (layer, index), alpha in FACTORS.items():
            backend.downs[layer].weight[:, index] *= alpha
        edited = logits(backend, texts)
    finally:
        for down, weight in zip(backend.downs, before, strict=True):
            down.weight.copy_(weight)
    np.testing.assert_allclose(scaled, edited, rtol=1e-4, atol=1e-5)
    assert np.abs(scaled - plain).max() > 1e-3
    with pytest.raises(HQError, match=r"Neuron \(0, 200\) .* 4 layers of 128 to 256"):
        with backend.scale({(0, 200): 0.0}):
            pass


def test_permuted_layers_read_in_the_order_of_the_source(backend):
    generator = np.random.default_rng(0)
    order = [generator.permutation(width) for width in WIDTHS]
    matched = [np.ones(width, dtype=bool) for width in WIDTHS]
    mapped = PermutedBackend(backend, order, matched)
    texts = tiny.exchanges(2)
    for ours, theirs in zip(mapped.trace(texts), backend.trace(texts), strict=True):
        for of_layer, block in zip(order, backend.identity.space.slices, strict=True):
            inside = theirs.values[..., block]
            np.testing.assert_array_equal(ours.values[..., block], inside[..., of_layer])
    chosen = np.array([3, 130, 300, 301, 700])
    flat = np.concatenate(
        [of + block.start for of, block in zip(order, backend.identity.space.slices, strict=True)]
    )
    own = flat[chosen]  # of the backend itself, whose readings come in ascending order
    for ours, theirs in zip(
        mapped.read_tokens(texts, chosen, "sum"),
        backend.read_tokens(texts, np.sort(own), "sum"),
        strict=True,
    ):
        columns = np.searchsorted(np.sort(own), own)
        np.testing.assert_array_equal(ours.values, theirs.values[:, columns])
    source = int(np.flatnonzero(order[3] == 200)[0])
    with mapped.scale({(3, source): 0.0}):
        ours = logits(mapped, texts)
    with backend.scale({(3, 200): 0.0}):
        np.testing.assert_array_equal(ours, logits(backend, texts))


def test_factors_are_baked_into_a_wide_layer(ragged, tmp_path):
    texts = tiny.exchanges(3)
    bake(ragged, tmp_path / "baked", FACTORS)
    with TorchBackend(ragged, device="cpu") as plain, plain.scale(FACTORS):
        expected = logits(plain, texts)
    with TorchBackend(tmp_path / "baked", device="cpu") as baked:
        np.testing.assert_allclose(logits(baked, texts), expected, rtol=1e-2, atol=1e-2)
        assert np.abs(logits(baked, texts) - expected).max() < 0.05


def test_a_config_with_too_few_widths_is_named():
    config = decoders.RAGGED["gemma3n_text"]()
    config.intermediate_size = [128, 256]
    with pytest.raises(HQError, match="2 widths for 4 layers"):
        Architecture().space(config)


def test_sets_do_not_pass_between_models_of_the_same_size(tmp_path):
    """Layers in another order have the same number of neurons, and other neurons."""
    one, other = (
        ModelIdentity.of("m", "f", "a", NeuronSpace.of_widths(widths), "")
        for widths in (WIDTHS, WIDTHS[::-1])
    )
    neuron = Neuron(layer=0, index=0, weight=1, mean=0, scale=1)
    found = NeuronSet(
        model=one, cett="sum", tokens="answer", labels="1-vs-1", intercept=0, neurons=(neuron,)
    )
    with pytest.raises(HQError, match=r"blocks \(128, 128, 256, 256\)"):
        found.require(other)
