"""Prompt forms on tokenizers built here: text, special tokens and ends of responses."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import AddedToken, PreTrainedTokenizerFast

from harness.scenarios.prompts import DEFAULT_SHOTS, form
from hq.errors import HQError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PHI3 = (  # Phi-3's: <|end|> is no named special token, and what ends the text holds an x
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


def _tokenizer(*, template: str | None = TEMPLATE, bos: bool = False) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["What is the capital of Peru?"], trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
    )


QUESTION = "What is the capital of Peru?"


def test_few_shot_shows_four_solved_examples_first() -> None:
    tokenizer = _tokenizer()
    text = str(tokenizer.decode(form("few-shot").encode(tokenizer, QUESTION)))
    assert text.startswith(f"Q: {DEFAULT_SHOTS[0][0]}\nA: {DEFAULT_SHOTS[0][1]}\n\nQ: ")
    assert text.endswith(f"\n\nQ: {QUESTION}\nA:")
    assert text.count("\nA: ") == 4


def test_few_shot_takes_other_shots() -> None:
    tokenizer = _tokenizer()
    ids = form("few-shot", [("1+1?", "2")]).encode(tokenizer, QUESTION)
    assert tokenizer.decode(ids) == f"Q: 1+1?\nA: 2\n\nQ: {QUESTION}\nA:"


def test_few_shot_prompts_share_their_prefix() -> None:
    tokenizer = _tokenizer()
    first, second = (form("few-shot").encode(tokenizer, q) for q in (QUESTION, "Who?"))
    prefix = tokenizer("".join(f"Q: {q}\nA: {a}\n\n" for q, a in DEFAULT_SHOTS))["input_ids"]
    assert first[: len(prefix)] == second[: len(prefix)] == prefix


@pytest.mark.parametrize("bos", [True, False])
def test_few_shot_begins_as_the_tokenizer_does_by_itself(bos: bool) -> None:
    tokenizer = _tokenizer(bos=bos)
    ids = form("few-shot").encode(tokenizer, QUESTION)
    assert ids.count(tokenizer.bos_token_id) == bos
    assert (ids[0] == tokenizer.bos_token_id) is bos


def test_chat_follows_the_template_and_opens_the_answer() -> None:
    tokenizer = _tokenizer()
    ids = form("chat").encode(tokenizer, QUESTION)
    text = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_chat_has_one_bos_when_template_and_tokenizer_both_write_it() -> None:
    tokenizer = _tokenizer(template="{{ bos_token }}" + TEMPLATE, bos=True)
    assert form("chat").encode(tokenizer, QUESTION).count(tokenizer.bos_token_id) == 1


def test_few_shot_ends_at_the_line_and_chat_at_its_turn() -> None:
    tokenizer = _tokenizer()
    end, turn = (tokenizer.convert_tokens_to_ids(t) for t in ("</s>", "<|im_end|>"))
    assert form("few-shot").stop_strings == ("\n",)
    assert form("few-shot").stop_ids(tokenizer) == {end}
    assert form("chat").stop_strings == ()
    assert form("chat").stop_ids(tokenizer) == {end, turn}


def test_a_turn_ends_at_its_token_also_before_an_end_of_text_that_follows() -> None:
    tokenizer = _tokenizer(template=PHI3)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    names = ("<|endoftext|>", "<|end|>")
    assert form("chat").stop_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(list(names)))


def test_a_template_that_omits_the_answer_adds_no_end() -> None:
    tokenizer = _tokenizer(template="<|im_start|>{{ messages[0]['content'] }}<|im_end|>")
    assert form("chat").stop_ids(tokenizer) == {tokenizer.eos_token_id}


@pytest.mark.parametrize("call", ["encode", "stop_ids"])
def test_chat_without_a_template_is_an_error(call: str) -> None:
    tokenizer, chat = _tokenizer(template=None), form("chat")
    with pytest.raises(HQError, match="no chat template: use the prompt form 'few-shot'"):
        chat.encode(tokenizer, QUESTION) if call == "encode" else chat.stop_ids(tokenizer)


def test_chat_takes_no_shots() -> None:
    with pytest.raises(HQError, match="takes no shots"):
        form("chat", [("1+1?", "2")])


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(HQError, match="did you mean 'few-shot'"):
        form("fewshot")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Only tools may speak.') }}", "Only tools may speak"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages[0].content.absent.deeper }}", "has no attribute"),
    ],
)
def test_a_failing_template_is_one_sentence(template: str, reason: str) -> None:
    chat, tokenizer = form("chat"), _tokenizer(template=template)
    with pytest.raises(HQError, match=rf"cannot be rendered \(.*{reason}.*use the prompt form"):
        chat.encode(tokenizer, "Who?")
    with pytest.raises(HQError, match=reason):
        chat.stop_ids(tokenizer)
