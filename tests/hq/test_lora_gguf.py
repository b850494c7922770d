"""GGUF adapters in stock llama.cpp: the same logits as scaling at run time, to the bit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.header import Header, read_header
from hq.gguf.quantize import quantize
from hq.gguf.write import write_gguf as write_model
from hq.llamacpp.context import Context
from hq.llamacpp.library import load_library
from hq.models.checkpoint import checkpoint_identity
from hq.suppress.lora import gguf as module
from hq.suppress.lora.gguf import write_gguf_adapter
from tests import tiny, tiny_tokenizers
from tests.hq import gguf_files
from tests.hq.test_gguf_file import relative

GGUF = Callable[..., Path]
NEURONS = [(0, 3), (0, 40), (0, 127), (2, 7)]  # of ranks 3 and 1, and none in layer 1
IDS = np.random.default_rng(0).integers(5, tiny.VOCABULARY, 24)


def header(path: Path) -> Header:
    """An adapter is no model: its header alone is read."""
    import mmap

    with open(path, "rb") as file:
        return read_header(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def decoded(context: Context, ids: np.ndarray) -> np.ndarray:
    """Logits at each token: of a prompt read at once, and of tokens one by one after it."""
    context.clear()
    half, pieces = len(ids) // 2, []
    for start, end in [(0, half), *((i, i + 1) for i in range(half, len(ids)))]:
        places = np.arange(start, end)
        pieces.append(context.decode(ids[start:end], places, 0 * places, 0 * places + 1).copy())
    return np.concatenate(pieces)


def scaled(backend: LlamaBackend, factors: Mapping[tuple[int, int], float]) -> np.ndarray:
    """By the native callback."""
    context, _ = backend.context(64, 1, 64)
    with context, backend.scale(factors):
        return decoded(context, IDS)


def adapted(backend: LlamaBackend, adapter: Path, scale: float) -> np.ndarray:
    """By stock llama.cpp, without a callback."""
    with backend.model.context(None, tokens=64, batch=64) as context:
        context.adapt(backend.model.adapter(adapter), scale)
        return decoded(context, IDS)


def wide(folder: Path, kind: str) -> Path:
    """A tiny llama whose rows are a block of the K-quants, 256 weights."""
    model = tiny.model("llama", hidden_size=256, intermediate_size=256)
    model.half().save_pretrained(folder / "wide")
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(folder / "wide")
    write_model(folder / "wide", folder / "f16.gguf", "f16", checkpoint_identity(folder / "wide"))
    quantize(folder / "f16.gguf", folder / f"{kind}.gguf", kind)
    return folder / f"{kind}.gguf"


def fused(path: Path) -> Path:
    """A phi3, by another name: llama.cpp looks for Phi-3's tokens where the name has that in it."""
    said = {"general.name": "fused"}
    weights = relative("phi3")
    return gguf_files.write(path, "Q8_0", weights=weights, changes=said, architecture="phi3")


GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "f16") for family in GATED), *(("llama", k) for k in ("f32", "q8_0", "q4_0"))],
)
def test_at_zero_the_logits_are_those_of_the_callback_to_the_bit(family, kind, gguf, tmp_path):
    with LlamaBackend(gguf(family, kind)) as backend:
        factors = dict.fromkeys(NEURONS, 0.0)
        write_gguf_adapter(backend.file, factors, tmp_path / "a.gguf")
        silenced = adapted(backend, tmp_path / "a.gguf", 1.0)
        np.testing.assert_array_equal(silenced, scaled(backend, factors))
        np.testing.assert_array_equal(
            adapted(backend, tmp_path / "a.gguf", 0.0), scaled(backend, {})
        )
        assert np.abs(silenced - scaled(backend, {})).max() > 1e-3


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1", "BF16"])
def test_so_it_is_in_types_that_llama_cpp_s_recipes_mix(kind, tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", kind)
    with LlamaBackend(path) as backend:
        factors = dict.fromkeys(NEURONS, 0.0)
        write_gguf_adapter(backend.file, factors, tmp_path / "a.gguf")
        assert header(tmp_path / "a.gguf").tensors["blk.0.ffn_up.weight.lora_a"].type.name == kind
        found = adapted(backend, tmp_path / "a.gguf", 1.0)
        np.testing.assert_array_equal(found, scaled(backend, factors))


def test_a_fused_gate_and_up(tmp_path):
    with LlamaBackend(fused(tmp_path / "model.gguf")) as backend:
        factors = dict.fromkeys(NEURONS, 0.0)
        write_gguf_adapter(backend.file, factors, tmp_path / "a.gguf")
        found = adapted(backend, tmp_path / "a.gguf", 1.0)
        np.testing.assert_array_equal(found, scaled(backend, factors))
        assert np.abs(found - scaled(backend, {})).max() > 1e-3


@pytest.mark.parametrize("kind", ["q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "iq4_nl"])
def test_and_in_k_quants(kind, tmp_path):
    with LlamaBackend(wide(tmp_path, kind)) as backend:
        factors = dict.fromkeys(NEURONS, 0.0)
        write_gguf_adapter(backend.file, factors, tmp_path / "a.gguf")
        found = adapted(backend, tmp_path / "a.gguf", 1.0)
        np.testing.assert_array_equal(found, scaled(backend, factors))


@pytest.mark.parametrize("scale", [-2.0, -0.5, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("start", [0.0, 0.3, 1.4])
def test_a_scale_moves_alpha_on_a_line(start, scale, gguf, tmp_path):
    with LlamaBackend(gguf("llama", "f32")) as backend:
        write_gguf_adapter(backend.file, dict.fromkeys(NEURONS, start), tmp_path / "a.gguf")
        found = adapted(backend, tmp_path / "a.gguf", scale)
        expected = scaled(backend, dict.fromkeys(NEURONS, 1 + scale * (start - 1)))
        np.testing.assert_allclose(found, expected, atol=5e-6)


def test_every_neuron_has_its_own_alpha(gguf, tmp_path):
    factors = dict(zip(NEURONS, (0.0, 0.5, 2.0, 3.0), strict=True))
    with LlamaBackend(gguf("llama", "f32")) as backend:
        write_gguf_adapter(backend.file, factors, tmp_path / "a.gguf")
        found = adapted(backend, tmp_path / "a.gguf", 1.0)
        np.testing.assert_allclose(found, scaled(backend, factors), atol=2e-6)


def test_a_holds_the_file_s_own_bytes_and_b_one_number_a_neuron(tmp_path):
    base, adapter = GGUFFile(fused(tmp_path / "model.gguf")), tmp_path / "a.gguf"
    write_gguf_adapter(base, dict.fromkeys(NEURONS, 0.25), adapter)
    found, raw = header(adapter), adapter.read_bytes()
    assert list(found.tensors) == [
        f"blk.{layer}.ffn_up.weight.{part}" for layer in (0, 2) for part in ("lora_a", "lora_b")
    ]
    a, b = (found.tensors[f"blk.0.ffn_up.weight.{part}"] for part in ("lora_a", "lora_b"))
    rows = base.rows("blk.0.ffn_up.weight")[[tiny.D_FF + i for i in (3, 40, 127)]]
    assert raw[a.offset : a.offset + a.nbytes] == rows.tobytes()
    dense = np.frombuffer(raw, np.float32, b.nbytes // 4, b.offset).reshape(2 * tiny.D_FF, 3)
    assert np.argwhere(dense).tolist() == [[tiny.D_FF + i, j] for j, i in enumerate((3, 40, 127))]
    assert set(dense[dense != 0].tolist()) == {-0.75}


def test_the_file_says_what_it_is(gguf, tmp_path):
    base = GGUFFile(gguf("llama", "f16"))
    write_gguf_adapter(base, {(2, 7): 0.25, (0, 3): 0.0, (1, 1): 1.0}, tmp_path / "a.gguf")
    said = header(tmp_path / "a.gguf").metadata
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 0.0
    assert said["general.base_model.0.name"] == base.identity.name
    assert said["hq.lora.base"] == base.fingerprint
    lists = [said[f"hq.lora.{key}"].tolist() for key in ("layers", "neurons", "alphas")]
    assert lists == [[0, 2], [3, 7], [0.0, 0.25]]
    with pytest.raises(HQError, match="is of type 'adapter', not a model"):
        GGUFFile(tmp_path / "a.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 0.3, 0.5, 2.0])
def test_on_the_embedded_model_every_alpha_is_right_to_the_bit(start, tmp_path):
    """Q4_1, and H-Neurons that were found on it; what 8 bits of activation leave is nothing."""
    from harness.models.packaged import packaged_gguf
    from hq.neurons.neuron_set import NeuronSet

    found = NeuronSet.load(Path(__file__).parents[2] / "results/smollm2-triviaqa/neurons.json")
    factors = {(neuron.layer, neuron.index): start for neuron in found.positive}
    with LlamaBackend(packaged_gguf()) as backend:
        write_gguf_adapter(backend.file, factors, tmp_path / "a.gguf")
        silenced = adapted(backend, tmp_path / "a.gguf", 1.0)
        np.testing.assert_array_equal(silenced, scaled(backend, factors))
        assert np.abs(silenced - scaled(backend, {})).max() > 0.1


# --- products that are not linear in a row of the up projection


def biased(path: Path, bias: np.ndarray, kind: str = "F32") -> Path:
    """A llama with a bias on the up projection of each layer."""
    weights = gguf_files.llama_weights()
    layers = range(gguf_files.LAYERS)
    weights |= {f"blk.{layer}.ffn_up.bias": bias.astype(np.float32) for layer in layers}
    return gguf_files.write(path, kind, weights=weights)


def test_a_bias_on_up_is_scaled_too(tmp_path):
    bias = np.random.default_rng(1).standard_normal(gguf_files.D_FF)
    with LlamaBackend(biased(tmp_path / "model.gguf", bias)) as backend:
        for start, scale in ((0.0, 1.0), (0.3, 0.5)):
            write_gguf_adapter(backend.file, dict.fromkeys(NEURONS, start), tmp_path / "a.gguf")
            assert "blk.0.ffn_down.weight.lora_a" in header(tmp_path / "a.gguf").tensors
            found = adapted(backend, tmp_path / "a.gguf", scale)
            factors = dict.fromkeys(NEURONS, 1 + scale * (start - 1))
            np.testing.assert_allclose(found, scaled(backend, factors), atol=1e-5)


def test_a_bias_that_is_zero_for_the_neurons_is_none(tmp_path):
    bias = np.ones(gguf_files.D_FF)
    bias[[index for _, index in NEURONS]] = 0
    with LlamaBackend(biased(tmp_path / "model.gguf", bias, "Q8_0")) as backend:
        write_gguf_adapter(backend.file, dict.fromkeys(NEURONS, 0.0), tmp_path / "a.gguf")
        found = adapted(backend, tmp_path / "a.gguf", 1.0)
        expected = scaled(backend, dict.fromkeys(NEURONS, 0.0))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "start", "scale", "limit"),
    [
        ("F32", 0.0, 1.0, 2e-4),  # rounding, which later layers grow: 1.01e-4 seen with AVX2 alone
        ("F32", 0.3, 0.5, 2e-4),
        ("F16", 0.0, 1.0, 0.02),
        ("F16", 0.3, 0.5, 0.02),
        ("Q8_0", 0.0, 1.0, 0.2),  # llama.cpp rounds h to 8 bits
    ],
)
def test_without_a_gate_columns_of_down_are_used(kind, start, scale, limit, tmp_path):
    weights = relative("gpt2")
    path = gguf_files.write(tmp_path / "model.gguf", kind, weights=weights, architecture="gpt2")
    with LlamaBackend(path) as backend:
        write_gguf_adapter(backend.file, dict.fromkeys(NEURONS, start), tmp_path / "a.gguf")
        assert "blk.0.ffn_down.weight.lora_a" in header(tmp_path / "a.gguf").tensors
        found, plain = adapted(backend, tmp_path / "a.gguf", scale), scaled(backend, {})
        expected = scaled(backend, dict.fromkeys(NEURONS, 1 + scale * (start - 1)))
        effect = np.linalg.norm(expected - plain)
        assert np.linalg.norm(found - expected) / effect <= limit


# --- what is refused


def test_an_adapter_of_another_architecture_is_refused(gguf, tmp_path):
    write_gguf_adapter(GGUFFile(gguf("qwen2")), dict.fromkeys(NEURONS, 0.0), tmp_path / "a.gguf")
    with LlamaBackend(gguf("llama")) as backend:
        with pytest.raises(HQError, match=r"cannot load the adapter .*a\.gguf: .*mismatch"):
            backend.model.adapter(tmp_path / "a.gguf")
        with pytest.raises(HQError, match="cannot load the adapter"):
            backend.model.adapter(tmp_path / "nowhere.gguf")


def test_a_failure_leaves_nothing_behind(gguf, tmp_path, monkeypatch):
    base, into = GGUFFile(gguf("llama", "q8_0")), tmp_path / "new" / "a.gguf"
    with pytest.raises(HQError, match="would change nothing"):
        write_gguf_adapter(base, {(0, 3): 1.0}, into)
    real = module.gguf_package()

    def unknown(number: int) -> None:
        raise ValueError(number)

    old = SimpleNamespace(**vars(real) | {"GGMLQuantizationType": unknown})
    monkeypatch.setattr(module, "gguf_package", lambda: old)
    with pytest.raises(HQError, match="does not write Q8_0: upgrade it"):
        write_gguf_adapter(base, {(0, 3): 0.0}, into)
    assert not list(tmp_path.glob("**/*.gguf")) + list(tmp_path.glob("**/*.draft"))


def test_an_adapter_that_is_not_set_is_an_error(gguf, tmp_path, monkeypatch):
    write_gguf_adapter(GGUFFile(gguf("llama")), dict.fromkeys(NEURONS, 0.0), tmp_path / "a.gguf")
    with LlamaBackend(gguf("llama")) as backend:
        adapter = backend.model.adapter(tmp_path / "a.gguf")
        context = backend.model.context(None, tokens=32, batch=8)
        with monkeypatch.context() as patched:
            patched.setattr(load_library().llama, "llama_set_adapters_lora", lambda *_: -1)
            with pytest.raises(HQError, match="could not set an adapter"):
                context.adapt(adapter, 1.0)
        context.close()
        with pytest.raises(HQError, match="is closed"):
            context.adapt(adapter, 1.0)
