"""A tiny llama with known causal neurons, neurons of single answers, and questions about subjects.

A subject's embedding has a memory of the right answer and of a wrong one, and cues. Attention
copies the cues to all later tokens. Each cue has one causal neuron in layer 0, and their sum
weakens the recall of the right answer in layer 1, so that the model says the wrong one. Each answer
has neurons that fire on its token. All other neurons read random directions of what attention
copies, which is mostly noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import transformers as hf
from jaxtyping import Int

import hq

CUES = 12
RELATIONS = 3
ANSWERS = 12  # of each relation
_OF_ANSWER = 2  # neurons of each answer in each layer
_NOISE = 40  # dimensions of noise in a subject's embedding
_JUNK = 16  # dimensions that neurons without an effect write to
D_FF = 256
_CONSTANT = 20.0  # of every embedding: a bias
_NORM = 30.0  # of every embedding, so that RMSNorm tells nothing about a subject
_WRITE = 0.1  # norm of the output weights of a neuron without an effect
_MEMORY = 10.0  # mean memory of the right answer; its standard deviation is 1
_STEEPNESS = 40.0  # of recall: the neurons that recall are silent unless their answer is recalled
_MEAN = 0.72  # of a causal neuron at the end of a prompt
_ALL_ANSWERS = RELATIONS * ANSWERS
_FIRST_ANSWER = 1 + RELATIONS  # token ids: the beginning, the relations, the answers, the subjects
_FIRST_SUBJECT = _FIRST_ANSWER + _ALL_ANSWERS

CAUSAL = np.arange(CUES)
"""Flat indices of the causal neurons: the first of layer 0."""


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


class Planted(NamedTuple):
    """The model, as hq and as transformers see it, and the questions with its answers."""

    model: hq.Model
    llama: hf.LlamaForCausalLM
    questions: list[Question]

    def trace(self, questions: Sequence[Question]) -> hq.Features:
        """Return the CETT of the given answers."""
        return self.model.trace([q.prompt for q in questions], [(q.given,) for q in questions])

    def hallucinated(self) -> float:
        """Return the share of questions that the model, as it is now, answers wrongly."""
        said = _answers(self.llama, [q.prompt for q in self.questions])
        return float(np.mean([a != q.right for a, q in zip(said, self.questions, strict=True)]))


class _Blocks:
    """Consecutive slices of the residual stream."""

    def __init__(self, **widths: int) -> None:
        ends = np.cumsum(list(widths.values())).tolist()
        spans = zip(widths, [0, *ends], ends, strict=False)
        self._of = {name: np.arange(start, end) for name, start, end in spans}
        self.width = 2 * ((ends[-1] + 1) // 2)

    def __getitem__(self, name: str) -> Int[np.ndarray, " k"]:
        return self._of[name]


_BLOCKS = _Blocks(
    right=_ALL_ANSWERS,
    wrong=_ALL_ANSWERS,
    token=_ALL_ANSWERS,
    recalled=_ALL_ANSWERS,
    cue=CUES,
    noise=_NOISE,
    copied=CUES + _NOISE,
    doubt=1,
    junk=_JUNK,
    constant=1,
    filler=1,  # fills up the norm of an embedding
)
# RMSNorm divides a value of the residual stream by about this.
_UNIT = float(_NORM / np.sqrt(_BLOCKS.width))


def planted_model(subjects: int, effect: float, seed: int) -> Planted:
    """Return a model and one question about each subject.

    Args:
        subjects: Number of subjects.
        effect: How much a cue of one standard deviation weakens the recall; 0 for none.
        seed: Seed of subjects and of weights.
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
    llama = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        _embed(llama, right, wrong, rng)
        _attend(llama)
        for layer in range(2):
            _noise_neurons(llama, layer, rng)
            _answer_neurons(llama, layer)
        _causal_neurons(llama, effect)
        _recall_neurons(llama, _MEMORY - CUES * _MEAN * effect)
        _unembed(llama)
    identity = hq.ModelIdentity(
        name="planted", fingerprint=f"planted-{seed}", architecture="llama", n_layers=2, d_ff=D_FF
    )
    model = hq.wrap(llama, model_identity=identity)
    prompts = [(0, 1 + int(r), _FIRST_SUBJECT + s) for s, r in enumerate(relation)]
    said = _answers(llama, prompts)
    questions = [
        Question(prompt, _FIRST_ANSWER + int(r), given)
        for prompt, r, given in zip(prompts, right, said, strict=True)
    ]
    return Planted(model, llama, questions)


def _answers(llama: hf.LlamaForCausalLM, prompts: Sequence[tuple[int, ...]]) -> list[int]:
    with torch.inference_mode():
        logits = llama(torch.tensor(prompts)).logits[:, -1]
    answers: list[int] = logits.argmax(-1).tolist()
    return answers


def _embed(
    llama: hf.LlamaForCausalLM,
    right: Int[np.ndarray, " s"],
    wrong: Int[np.ndarray, " s"],
    rng: np.random.Generator,
) -> None:
    weight = np.zeros((llama.config.vocab_size, _BLOCKS.width))
    weight[:, _BLOCKS["constant"]] = _CONSTANT
    answers, subjects = np.arange(_ALL_ANSWERS), np.arange(len(right))
    weight[_FIRST_ANSWER + answers, _BLOCKS["token"][answers]] = 2
    rows = _FIRST_SUBJECT + subjects
    weight[rows, _BLOCKS["right"][right]] = _MEMORY + rng.standard_normal(len(right))
    weight[rows, _BLOCKS["wrong"][wrong]] = 1
    for block in ("cue", "noise"):
        columns = _BLOCKS[block]
        weight[np.ix_(rows, columns)] = rng.standard_normal((len(rows), len(columns)))
    weight[:, _BLOCKS["filler"][0]] = np.sqrt(_NORM**2 - (weight**2).sum(axis=1))
    llama.model.embed_tokens.weight.copy_(torch.as_tensor(weight))


def _attend(llama: hf.LlamaForCausalLM) -> None:
    """Equal attention to all tokens, which copies the cues and the noise of the subject."""
    attention = llama.model.layers[0].self_attn
    sources = np.concatenate([_BLOCKS["cue"], _BLOCKS["noise"]])
    slots = np.arange(len(sources))
    attention.v_proj.weight[slots, sources] = _UNIT
    attention.o_proj.weight[_BLOCKS["copied"], slots] = 4.0  # a token attends to 4 at the answer


def _noise_neurons(llama: hf.LlamaForCausalLM, layer: int, rng: np.random.Generator) -> None:
    """Fill the layer with neurons that read the copied noise, and have no effect."""
    sources = _BLOCKS["copied"][CUES:]
    directions = rng.standard_normal((D_FF, len(sources))) / np.sqrt(len(sources))
    outputs = rng.standard_normal((_JUNK, D_FF)) / np.sqrt(_JUNK)
    mlp = llama.model.layers[layer].mlp
    mlp.gate_proj.weight[:, sources] = torch.as_tensor(2 * _UNIT * directions).float()
    mlp.up_proj.weight[:, _BLOCKS["constant"]] = _UNIT / _CONSTANT
    mlp.down_proj.weight[_BLOCKS["junk"]] = torch.as_tensor(_WRITE * outputs).float()


def _gates(llama: hf.LlamaForCausalLM, layer: int, neurons: Int[np.ndarray, " k"]) -> torch.Tensor:
    """Gate weights of some neurons of a layer, emptied, on the scale of the residual stream."""
    weight = llama.model.layers[layer].mlp.gate_proj.weight
    weight[neurons] = 0
    return weight


def _answer_neurons(llama: hf.LlamaForCausalLM, layer: int) -> None:
    """Neurons that fire on the token of one answer: the confounders."""
    answers = np.tile(np.arange(_ALL_ANSWERS), _OF_ANSWER)
    neurons = D_FF - 1 - np.arange(len(answers))
    _gates(llama, layer, neurons)[neurons, _BLOCKS["token"][answers]] = 2 * _UNIT


def _causal_neurons(llama: hf.LlamaForCausalLM, effect: float) -> None:
    _gates(llama, 0, CAUSAL)[CAUSAL, _BLOCKS["copied"][:CUES]] = 2 * _UNIT
    llama.model.layers[0].mlp.down_proj.weight[_BLOCKS["doubt"], CAUSAL] = effect


def _recall_neurons(llama: hf.LlamaForCausalLM, threshold: float) -> None:
    """Neurons of layer 1 that say the right answer if its memory exceeds doubt and threshold."""
    answers = np.arange(_ALL_ANSWERS)
    gates = _gates(llama, 1, answers)
    gates[answers, _BLOCKS["right"][answers]] = _STEEPNESS * _UNIT
    gates[answers, _BLOCKS["doubt"]] = -_STEEPNESS * _UNIT
    gates[answers, _BLOCKS["constant"]] = -_STEEPNESS * _UNIT * threshold / _CONSTANT
    llama.model.layers[1].mlp.down_proj.weight[_BLOCKS["recalled"][answers], answers] = 1


def _unembed(llama: hf.LlamaForCausalLM) -> None:
    answers = np.arange(_ALL_ANSWERS)
    llama.lm_head.weight[_FIRST_ANSWER + answers, _BLOCKS["recalled"][answers]] = 1
    llama.lm_head.weight[_FIRST_ANSWER + answers, _BLOCKS["wrong"][answers]] = 0.5
