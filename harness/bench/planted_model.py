"""Tiny Llamas with known causes of hallucination, and questions that they answer.

A subject's embedding has a memory of the right answer and of a wrong one, and cues: what the model
"does not know". Attention copies the cues to all later tokens. Their sum, the doubt, weakens the
recall of the right answer in layer 1, so that the model says the wrong one. A `Kind` says which
neurons of layer 0 read the cues, and whether they or attention write the doubt.

Each answer has neurons that fire on its token. All other neurons read random directions of what
attention copies, which is mostly noise. Neurons are in random order, and the residual stream is
rotated at random, so that no weight is exact when it is quantized.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import transformers as hf
from jaxtyping import Float, Int
from torch import Tensor

from hq.backends.base import Backend
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse

CUES = 12  # with an effect; bystanders read as many others
RELATIONS = 3
ANSWERS = 12  # of each relation
D_FF = 256
SHARED = 0.3  # correlation of two cues of a subject, which all have a part of one latent variable

Kind = Literal["causal", "bystanders", "twins", "correlates", "nothing"]
_READERS: dict[Kind, list[tuple[int, bool]]] = {
    "causal": [(cue, True) for cue in range(CUES)],
    "bystanders": [(cue, cue < CUES) for cue in range(2 * CUES)],
    "twins": [(cue, cause) for cause in (True, False) for cue in range(CUES)],
    "correlates": [(cue, False) for cue in range(CUES)],
    "nothing": [],
}
KINDS: dict[Kind, str] = {
    "causal": f"{CUES} neurons read one cue each and write the doubt",
    "bystanders": f"and {CUES} neurons without an effect read other cues, of the same latent "
    "variable",
    "twins": f"and {CUES} neurons without an effect read the cues of the causal neurons",
    "correlates": f"{CUES} neurons without an effect read the cues, and attention writes the doubt",
    "nothing": "no neuron reads a cue, and the memory alone decides",
}
"""What is planted; each name with one sentence."""

_OF_ANSWER = 2  # neurons of each answer in each layer
_NOISE = 40  # dimensions of noise in a subject's embedding
_JUNK = 16  # dimensions that neurons without an effect write to
_CONSTANT = 20.0  # of every embedding: a bias
_NORM = 30.0  # of every embedding, so that RMSNorm tells nothing about a subject
_WRITE = 0.5  # typical norm of the output weights of a neuron without an effect
_MEMORY = 6.0  # mean memory of the right answer
_STEEPNESS = 40.0  # of recall: the neurons that recall are silent unless their answer is recalled
_REST = 2.0  # activation of a planted neuron at the mean cue, in standard deviations
_GATE = 10.0  # of planted neurons; silu(10) = 10, so that they are linear in their cue
_PROMPT = 3  # tokens: the beginning, the relation, the subject
_ALL_ANSWERS = RELATIONS * ANSWERS
_FIRST_ANSWER = 1 + RELATIONS  # token ids: the beginning, the relations, the answers, the subjects
_FIRST_SUBJECT = _FIRST_ANSWER + _ALL_ANSWERS
_BATCH = 500  # prompts that are answered together


class Question(NamedTuple):
    """A question about one subject, as token ids, and what the model answers."""

    prompt: tuple[int, ...]  # the beginning, the relation, the subject
    right: int
    given: int

    @property
    def hallucinated(self) -> bool:
        """Whether the model gives another answer than the right one."""
        return self.given != self.right

    @property
    def relation(self) -> int:
        """Token id of the relation."""
        return self.prompt[1]

    @property
    def exchange(self) -> PromptResponse:
        """The question with the answer that the model gave."""
        return PromptResponse(self.prompt, (self.given,))


class Planted(NamedTuple):
    """A model, where its planted neurons are, and a prompt and the right answer per subject."""

    kind: Kind
    noise: float
    llama: hf.LlamaForCausalLM  # FP16 values, held in FP32
    identity: ModelIdentity
    causal: Int[np.ndarray, " c"]  # flat indices of the neurons that write the doubt
    signal: Int[np.ndarray, " s"]  # of all neurons that read a cue; in the order of the cues
    prompts: list[tuple[int, ...]]
    right: list[int]

    def save(self, folder: Path) -> None:
        """Write an FP16 checkpoint."""
        self.llama.half().save_pretrained(folder)
        self.llama.float()

    def ask(self, backend: Backend) -> list[Question]:
        """Return every question with the answer that the model, as it now is, prefers."""
        given = greedy(backend, self.prompts)
        return [Question(*each) for each in zip(self.prompts, self.right, given, strict=True)]


class _Blocks:
    """Consecutive slices of the residual stream."""

    def __init__(self, **widths: int) -> None:
        ends = np.cumsum(list(widths.values())).tolist()
        spans = zip(widths, [0, *ends], ends, strict=False)
        self._of = {name: np.arange(start, end) for name, start, end in spans}
        self.width = 64 * -(-ends[-1] // 64)  # whole blocks of bitsandbytes

    def __getitem__(self, name: str) -> Int[np.ndarray, " k"]:
        return self._of[name]


_BLOCKS = _Blocks(
    right=_ALL_ANSWERS,
    wrong=_ALL_ANSWERS,
    token=_ALL_ANSWERS,
    recalled=_ALL_ANSWERS,
    cue=2 * CUES,
    noise=_NOISE,
    copied=2 * CUES + _NOISE,
    doubt=1,
    junk=_JUNK,
    constant=1,
    filler=1,  # fills up the norm of an embedding
)
# RMSNorm divides a value of the residual stream by about this: first embeddings, then with copies.
_UNIT = float(_NORM / np.sqrt(_BLOCKS.width))
_UNIT_COPIED = float(np.sqrt((_NORM**2 + len(_BLOCKS["copied"])) / _BLOCKS.width))


def planted_model(
    kind: Kind, subjects: int, noise: float, seed: int, shared: float = SHARED
) -> Planted:
    """Return a model and one question about each subject.

    Args:
        kind: What is planted.
        subjects: Number of subjects.
        noise: Standard deviation of the memory of right answers, which also decides whether a
            question is answered right, relative to that of the doubt. It has no effect with
            "nothing".
        seed: Seed of subjects and of weights.
        shared: Correlation of two cues of a subject.
    """
    rng = np.random.default_rng(seed)
    popularity = 1 / (2 + np.arange(ANSWERS))
    popularity /= popularity.sum()
    relation = rng.integers(RELATIONS, size=subjects)
    drawn = [rng.choice(ANSWERS, 2, replace=False, p=popularity) for _ in range(subjects)]
    right, wrong = (relation[:, None] * ANSWERS + np.array(drawn)).T
    config = hf.LlamaConfig(
        vocab_size=_FIRST_SUBJECT + subjects,
        hidden_size=_BLOCKS.width,
        intermediate_size=D_FF,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8,
        tie_word_embeddings=False,
    )
    llama = hf.LlamaForCausalLM(config).eval().requires_grad_(False)
    readers, doubt_per_cue = _READERS[kind], _doubt_per_cue(shared)
    for name, parameter in llama.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    _embed(llama, right, wrong, noise if kind != "nothing" else 1.0, shared, rng)
    _attend(llama, doubt_per_cue if kind == "correlates" else 0.0)
    for layer in range(2):
        _noise_neurons(llama, layer, rng)
        _answer_neurons(llama, layer)
    _reading_neurons(llama, readers, doubt_per_cue, rng)
    through_neurons = any(cause for _, cause in readers)
    doubt = CUES * doubt_per_cue * _REST if through_neurons else 0.0
    _recall_neurons(llama, _MEMORY - doubt)
    _unembed(llama)
    moved = [_permute(llama, layer, rng) for layer in range(2)]
    _rotate(llama, rng)
    for parameter in llama.parameters():
        parameter.copy_(parameter.half())
    signal = moved[0][: len(readers)]
    return Planted(
        kind,
        noise,
        llama,
        ModelIdentity(
            name=f"planted-{kind}",
            fingerprint=f"planted-{kind}-{subjects}-{noise:g}-{seed}",
            architecture="llama",
            n_layers=2,
            d_ff=D_FF,
        ),
        signal[[cause for _, cause in readers]] if readers else signal,
        signal,
        [(0, 1 + int(r), _FIRST_SUBJECT + s) for s, r in enumerate(relation)],
        [_FIRST_ANSWER + int(r) for r in right],
    )


def expected_auroc(noise: float, cues: int = CUES, shared: float = SHARED) -> float:
    """Return the AUROC of the sum of some cues with an effect: 0.5 + 2/π·asin(ρ/√2).

    ρ is the correlation of the sum with doubt minus memory, u, whose sign is the label. Draw a
    hallucinated response 1 and a right one 0: P(x₁ > x₀, u₁ > 0, u₀ < 0) is an orthant probability
    of three normal variables with correlations ρ/√2, ρ/√2 and 0, which is 1/8 + asin(ρ/√2)/(2π)
    (Sheppard 1899; David 1953), and the AUROC is 4 times it.
    """
    covariance = cues * (1 + (CUES - 1) * shared) * _doubt_per_cue(shared)
    deviation = np.sqrt(cues * (1 + (cues - 1) * shared))
    rho = covariance / deviation / np.sqrt(1 + noise**2)
    return float(0.5 + 2 / np.pi * np.arcsin(rho / np.sqrt(2)))


def _doubt_per_cue(shared: float) -> float:
    """Return the weight of a cue with which the doubt has a standard deviation of 1."""
    return float(1 / np.sqrt(CUES * (1 + (CUES - 1) * shared)))


def greedy(backend: Backend, prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """Return the token with the highest logit after each prompt."""
    tokens: list[int] = []
    for start in range(0, len(prompts), _BATCH):
        logits = backend.decoding().start(prompts[start : start + _BATCH])
        tokens += logits.argmax(-1).tolist()
    return tokens


def share_in(some: Int[np.ndarray, " k"], others: Int[np.ndarray, " m"]) -> float:
    """Return the share of `some` neurons that are among the others; NaN for none.

    This is the precision of a selection among the planted neurons, and with exchanged arguments its
    recall.
    """
    return len(np.intersect1d(some, others)) / len(some) if len(some) else float("nan")


def silenced(flat: Int[np.ndarray, " k"], model: ModelIdentity) -> Factors:
    """Return α = 0 for neurons with these flat indices, as `Backend.scale` takes it."""
    return dict.fromkeys(model.space.positions(flat), 0.0)


def _embed(
    llama: hf.LlamaForCausalLM,
    right: Int[np.ndarray, " s"],
    wrong: Int[np.ndarray, " s"],
    noise: float,
    shared: float,
    rng: np.random.Generator,
) -> None:
    weight = np.zeros((llama.config.vocab_size, _BLOCKS.width))
    weight[:, _BLOCKS["constant"]] = _CONSTANT
    answers, subjects = np.arange(_ALL_ANSWERS), np.arange(len(right))
    weight[_FIRST_ANSWER + answers, _BLOCKS["token"][answers]] = 2
    rows = _FIRST_SUBJECT + subjects
    memory = _MEMORY + noise * rng.standard_normal(len(right))
    weight[rows, _BLOCKS["right"][right]] = memory
    weight[rows, _BLOCKS["wrong"][wrong]] = 1
    latent, own = rng.standard_normal((len(rows), 1)), rng.standard_normal((len(rows), 2 * CUES))
    weight[np.ix_(rows, _BLOCKS["cue"])] = np.sqrt(shared) * latent + np.sqrt(1 - shared) * own
    drawn = rng.standard_normal((len(rows), _NOISE))
    drawn *= np.sqrt(_NOISE) / np.linalg.norm(drawn, axis=1, keepdims=True)
    weight[np.ix_(rows, _BLOCKS["noise"])] = drawn  # of one norm, as it fills CETT's denominator
    weight[:, _BLOCKS["filler"][0]] = np.sqrt(_NORM**2 - (weight**2).sum(axis=1))
    llama.model.embed_tokens.weight.copy_(torch.as_tensor(weight))


def _attend(llama: hf.LlamaForCausalLM, doubt_per_cue: float) -> None:
    """Equal attention to all tokens, which copies the cues and the noise of the subject.

    It also writes the doubt, if a cue has a weight in it.
    """
    attention = llama.model.layers[0].self_attn
    sources = np.concatenate([_BLOCKS["cue"], _BLOCKS["noise"]])
    slots = np.arange(len(sources))
    attention.v_proj.weight[slots, sources] = _UNIT
    attention.o_proj.weight[_BLOCKS["copied"], slots] = _PROMPT  # attention takes a mean
    attention.o_proj.weight[_BLOCKS["doubt"], slots[:CUES]] = _PROMPT * doubt_per_cue


def _noise_neurons(llama: hf.LlamaForCausalLM, layer: int, rng: np.random.Generator) -> None:
    """Fill the layer with neurons that read the copied noise, and have no effect."""
    sources = _BLOCKS["copied"][2 * CUES :]
    directions = rng.standard_normal((D_FF, len(sources))) / np.sqrt(len(sources))
    mlp = llama.model.layers[layer].mlp
    mlp.gate_proj.weight[:, sources] = torch.as_tensor(2 * _UNIT_COPIED * directions).float()
    mlp.up_proj.weight[:, _BLOCKS["constant"]] = _UNIT_COPIED / _CONSTANT
    norms = _WRITE * np.exp(0.3 * rng.standard_normal(D_FF))
    mlp.down_proj.weight[_BLOCKS["junk"]] = _outputs_without_effect(norms, rng)


def _outputs_without_effect(
    norms: Float[np.ndarray, " k"], rng: np.random.Generator
) -> Float[Tensor, "junk k"]:
    outputs = rng.standard_normal((_JUNK, len(norms)))
    return torch.as_tensor(norms * outputs / np.linalg.norm(outputs, axis=0)).float()


def _cleared_gates(
    llama: hf.LlamaForCausalLM, layer: int, neurons: Int[np.ndarray, " k"]
) -> Float[Tensor, "d_ff width"]:
    weight: Tensor = llama.model.layers[layer].mlp.gate_proj.weight
    weight[neurons] = 0
    return weight


def _answer_neurons(llama: hf.LlamaForCausalLM, layer: int) -> None:
    """Neurons that fire on the token of one answer, and so know how hard its questions are."""
    answers = np.tile(np.arange(_ALL_ANSWERS), _OF_ANSWER)
    neurons = D_FF - 1 - np.arange(len(answers))
    gates = _cleared_gates(llama, layer, neurons)
    gates[neurons, _BLOCKS["token"][answers]] = 2 * _UNIT_COPIED


def _reading_neurons(
    llama: hf.LlamaForCausalLM,
    readers: Sequence[tuple[int, bool]],
    doubt_per_cue: float,
    rng: np.random.Generator,
) -> None:
    """The planted neurons: the first of layer 0. At the end of a prompt, h = rest + cue."""
    neurons = np.arange(len(readers))
    cues, causes = np.array(readers, dtype=np.int64).reshape(-1, 2).T
    mlp, constant = llama.model.layers[0].mlp, _BLOCKS["constant"][0]
    _cleared_gates(llama, 0, neurons)[neurons, constant] = _GATE * _UNIT_COPIED / _CONSTANT
    up, down = mlp.up_proj.weight, mlp.down_proj.weight
    up[neurons, constant] = _REST / _GATE * _UNIT_COPIED / _CONSTANT
    up[neurons, _BLOCKS["copied"][cues]] = _UNIT_COPIED / _GATE
    down[:, neurons] = 0
    down[_BLOCKS["doubt"][0], neurons[causes == 1]] = doubt_per_cue
    outputs = _outputs_without_effect(doubt_per_cue * (1 - causes), rng)
    down[np.ix_(_BLOCKS["junk"], neurons)] = outputs


def _recall_neurons(llama: hf.LlamaForCausalLM, threshold: float) -> None:
    """Neurons of layer 1 that say the right answer if its memory exceeds doubt and threshold."""
    answers = np.arange(_ALL_ANSWERS)
    gates = _cleared_gates(llama, 1, answers)
    gates[answers, _BLOCKS["right"][answers]] = _STEEPNESS * _UNIT
    gates[answers, _BLOCKS["doubt"]] = -_STEEPNESS * _UNIT
    gates[answers, _BLOCKS["constant"]] = -_STEEPNESS * _UNIT * threshold / _CONSTANT
    down = llama.model.layers[1].mlp.down_proj.weight
    down[:, answers] = 0
    down[_BLOCKS["recalled"][answers], answers] = 1


def _unembed(llama: hf.LlamaForCausalLM) -> None:
    answers = np.arange(_ALL_ANSWERS)
    llama.lm_head.weight[_FIRST_ANSWER + answers, _BLOCKS["recalled"][answers]] = 1
    llama.lm_head.weight[_FIRST_ANSWER + answers, _BLOCKS["wrong"][answers]] = 0.5


def _permute(
    llama: hf.LlamaForCausalLM, layer: int, rng: np.random.Generator
) -> Int[np.ndarray, " d_ff"]:
    """Put the neurons of a layer in random order, and return where each one is now."""
    order = rng.permutation(D_FF)
    mlp = llama.model.layers[layer].mlp
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight.copy_(projection.weight[order])
    mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    return np.argsort(order)


def _rotate(llama: hf.LlamaForCausalLM, rng: np.random.Generator) -> None:
    """Rotate the residual stream, which changes nothing, as all weights of RMSNorm are 1."""
    drawn = torch.as_tensor(rng.standard_normal((_BLOCKS.width, _BLOCKS.width)))
    rotation = torch.linalg.qr(drawn).Q.float()
    for name, parameter in llama.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.copy_(rotation @ parameter)
        elif "norm" not in name:
            parameter.copy_(parameter @ rotation.T)
