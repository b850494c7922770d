"""A whole study in seconds: a tiny random model with a tokenizer, and questions that suit it.

Half of the tokens start a new line, so that few-shot responses end. Half of the questions, chosen at
random, have the model's own greedy answer as their alias, so that both labels come up; the other
half cannot be right.
"""

import json
import string
from pathlib import Path
from random import Random

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from harness.scenarios.prompts import FewShot
from hq.backends.transformers.backend import TorchBackend
from hq.tracing.sampling import Sampling, StopCriteria, sample

_PLAIN = string.ascii_letters + string.digits + "?:ĠĊ"
_ENDS = [f"Ċ{letter}" for letter in string.ascii_letters]
_VOCABULARY = {token: i for i, token in enumerate(["<end>", *_PLAIN, *_ENDS])}

STUDY = """
name = "tiny"
model = {model}
precisions = ["fp16", "nf4"]
scenario = {{name = "triviaqa", options = {{source = {questions}}}}}
prompt = {{form = "few-shot", shots = [["a", "b"], ["c", "d"]]}}
sampling = {{temperature = 0.02, responses = 3, max_new_tokens = 8, balance="text", quota = 60}}
identify = {{folds = 3, max_fraction = 0.05}}
compare = {{draws = 3, text_tokens = 64}}
"""


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Characters, and new lines with a letter after them."""
    core = Tokenizer(models.BPE(_VOCABULARY, [("Ċ", "z")]))  # a GGUF file needs one merge
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False
    )


_SHAPE = {
    "vocab_size": len(_VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "initializer_range": 0.2,
}


def checkpoint(folder: Path, seed: int = 0, experts: bool = False) -> Path:
    """A Llama of 3 layers of 128 neurons, or a Mixtral of 4 · 32, saved with the tokenizer."""
    torch.manual_seed(seed)
    config: hf.PretrainedConfig = hf.LlamaConfig(**_SHAPE)
    if experts:
        mixture = {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
        config = hf.MixtralConfig(**_SHAPE | mixture)
    hf.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def questions(path: Path, model: Path, count: int = 400) -> Path:
    """A QA file: a random half of the questions has the model's greedy answer as its alias."""
    form, spell = FewShot((("a", "b"), ("c", "d"))), tokenizer()
    # Long, so that the samples fill several batches of a trace.
    asked = [f"{i:04d} " * 13 + f"word {i:04d}" for i in range(count)]
    prompts = [(q, tuple(form.encode(spell, q))) for q in asked]
    ending = StopCriteria(
        frozenset({0}), form.stop_strings, lambda ids: str(spell.decode(list(ids)))
    )
    greedy = Sampling(responses=1, temperature=0, max_new_tokens=8)
    with TorchBackend(model, device="cpu") as backend:
        trees = list(sample(backend.decoding(), prompts, greedy, ending))
    rows = [
        {"id": f"q{i}", "question": tree.key, "aliases": [_alias(i, tree.finished[0].text)]}
        for i, tree in enumerate(trees)
    ]
    # A row that cannot be used, as the official NQ-open file has two.
    rows.append({"id": "unusable", "question": "What comes last?", "aliases": ["---"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(folder: Path, experts: bool = False) -> Path:
    """Checkpoint, questions and study.toml in `folder`; the path of the last."""
    # With seed 0 the Mixtral gives too many equal answers for independent units.
    model = checkpoint(folder / "model", seed=int(experts), experts=experts)
    asked = questions(folder / "questions.jsonl", model)
    text = STUDY.format(model=json.dumps(str(model)), questions=json.dumps(str(asked)))
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return folder / "study.toml"


def _alias(i: int, answer: str) -> str:
    known = Random(i).random() < 0.5
    return answer.strip() if known and answer.strip() else f"never {i}"
