"""A tiny base model with planted H-Neurons, and models tuned from it, as studies of hq.

The base is `harness.bench.planted_model`, with an end-of-text token after every answer and a
tokenizer of words. Tuning is plain gradient descent on right answers, in which each neuron has its
own relative step. The planted neurons have smaller steps than all others, or are moved on purpose:
far, and in random directions, so that they still cause hallucination.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from harness.bench.planted_model import ANSWERS, D_FF, RELATIONS, Planted, planted_model
from harness.judges.base import Question
from harness.scenarios import SCENARIOS
from harness.scenarios.questions import question_scenario

SUBJECTS = 1200
STEPS = 3
SMALL, USUAL = 2e-4, 2e-3  # of a vector's length, per step
MOVED = 0.15  # of a vector's length, once
_BATCH = 64
_SCENARIO = "planted-lines"

STUDY = """
name = "planted"
model = {tuned}
precisions = ["fp16", "nf4"]
scenario = {{name = "planted-lines", options = {{source = {questions}}}}}
prompt = {{form = "plain"}}
sampling = {{temperature = 0, responses = 1, max_new_tokens = 2, quota = 200}}
identify = {{folds = 3, repeats = 1, max_fraction = 0.1}}
compare = {{draws = 3, text_tokens = 16}}

[origin]
base = {base}
"""


def lines(source: str, seed: int = 0) -> list[Question]:
    """Read questions from a JSON lines file, one entity each."""
    rows = map(json.loads, Path(source).read_text(encoding="utf-8").splitlines())
    return [
        Question(row["id"], row["question"], tuple(row["aliases"]), row["relation"], (row["id"],))
        for row in rows
    ]


def register() -> None:
    """Add the scenario of the planted questions, once."""
    if _SCENARIO not in SCENARIOS:
        SCENARIOS.add(_SCENARIO, question_scenario(_SCENARIO, lines))


def write(folder: Path) -> None:
    """Write `base`, `stable` and `moved`, questions, and a study of each tuned model."""
    planted = planted_model("causal", SUBJECTS, 0.25, seed=3, shared=0)
    base = _ending(planted)
    words = [word(number) for number in range(base.config.vocab_size)]
    save(base, folder / "base", words)
    rows = [
        {
            "id": words[subject],
            "relation": words[relation],
            "question": f"{words[relation]} {words[subject]}",
            "aliases": [words[right]],
        }
        for (_, relation, subject), right in zip(planted.prompts, planted.right, strict=True)
    ]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, moved in (("stable", 0.0), ("moved", MOVED)):
        save(tuned(planted, base, moved), folder / name, words)
        paths = {"tuned": folder / name, "base": folder / "base", "questions": questions}
        text = STUDY.format(**{key: json.dumps(str(path)) for key, path in paths.items()})
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    planted_neurons = [planted.identity.space.locate(planted.causal)[i].tolist() for i in (0, 2)]
    found = json.dumps(list(zip(*planted_neurons, strict=True)))
    (folder / "planted.json").write_text(found, encoding="utf-8")


def word(number: int) -> str:
    """Return a word of its own for each number: syllables, as the judge reads digits as amounts."""
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    return "".join(syllables[number // 60**power % 60] for power in (2, 1, 0))


def tokenizer(words: list[str]) -> hf.PreTrainedTokenizerFast:
    """Words, without what a plain prompt has around the question; the last one ends a text."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[1]))
    core.normalizer = normalizers.Sequence(
        [normalizers.Replace("Question:", ""), normalizers.Replace("Answer:", "")]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = TemplateProcessing(
        single=f"{words[0]} $A", special_tokens=[(words[0], 0)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=words[0], eos_token=words[-1]
    )


def save(llama: hf.LlamaForCausalLM, folder: Path, words: list[str]) -> None:
    """Write an FP16 checkpoint with the tokenizer."""
    llama.half().save_pretrained(folder)
    llama.float()
    tokenizer(words).save_pretrained(folder)


def _ending(planted: Planted) -> hf.LlamaForCausalLM:
    """Return the planted model with one more token, which it says after an answer."""
    old = planted.llama
    config = hf.LlamaConfig(**old.config.to_dict() | {"vocab_size": old.config.vocab_size + 1})
    config.bos_token_id, config.eos_token_id = 0, old.config.vocab_size
    llama = hf.LlamaForCausalLM(config).eval().requires_grad_(False)
    weights = old.state_dict()
    embedding = weights["model.embed_tokens.weight"]
    is_answer = torch.zeros(len(embedding))
    is_answer[1 + RELATIONS : 1 + RELATIONS * (1 + ANSWERS)] = 1
    reads = torch.linalg.pinv(embedding.double(), rtol=1e-3) @ is_answer.double()
    row = 10 * reads[None].float()
    weights["lm_head.weight"] = torch.cat([weights["lm_head.weight"], row])
    weights["model.embed_tokens.weight"] = torch.cat([embedding, embedding[:1]])
    llama.load_state_dict(weights)
    for parameter in llama.parameters():
        parameter.copy_(parameter.half())
    return llama


def tuned(planted: Planted, base: hf.LlamaForCausalLM, moved: float) -> hf.LlamaForCausalLM:
    """Return the base after gradient descent; planted neurons are also `moved`, if not 0."""
    llama = hf.LlamaForCausalLM(base.config).eval()
    llama.load_state_dict(base.state_dict())
    rng = np.random.default_rng(0)
    steps = USUAL * rng.uniform(0.5, 1.5, 2 * D_FF)
    steps[planted.causal] = SMALL
    by_layer = torch.as_tensor(steps.reshape(2, D_FF), dtype=torch.float32)
    weights = [
        (projection, by_layer[number])
        for number, layer in enumerate(llama.model.layers)
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
    ]
    for number in range(STEPS):
        some = slice(number * _BATCH, (number + 1) * _BATCH)
        logits = llama(torch.tensor(planted.prompts[some])).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(planted.right[some]))
        llama.zero_grad()
        loss.backward()
        for projection, size in weights:
            _step(projection.weight, projection.weight.grad, size)
    generator = torch.Generator().manual_seed(0)
    far = torch.zeros(2 * D_FF)
    far[planted.causal] = moved
    for (projection, _), size in zip(
        weights, far.reshape(2, D_FF).repeat_interleave(3, 0), strict=True
    ):
        drawn = torch.randn(projection.weight.shape, generator=generator)
        _step(projection.weight, drawn, size)
    return llama.requires_grad_(False)


def _step(
    weight: torch.nn.Parameter, direction: torch.Tensor | None, size: Float[torch.Tensor, " d_ff"]
) -> None:
    """Move each neuron's vector against a direction, by `size` of its length."""
    assert direction is not None
    dim = 0 if len(size) == weight.shape[1] else 1  # of a neuron's vector; W_down has columns
    with torch.no_grad():
        unit = direction / direction.norm(dim=dim, keepdim=True).clamp(min=1e-30)
        weight -= unit * weight.norm(dim=dim, keepdim=True) * size.unsqueeze(dim)
