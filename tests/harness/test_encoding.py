"""A study and a monitor encode the same prompt as the same token ids."""

from contextlib import ExitStack

import pytest
import transformers as hf
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from harness.models.dequantized import checkpoint_of
from harness.models.gguf_tokenizer import GGUFTokenizer
from harness.scenarios import prompts
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.write import write_gguf
from hq.llamacpp.model import LlamaModel
from hq.models.checkpoint import checkpoint_identity
from hq.models.encoding import Encoder, render_chat
from tests import tiny, tiny_tokenizers
from tests.chat_templates import SPECIAL, TEMPLATES
from tests.hq import gguf_files

pytest.importorskip("llama_cpp")

TEXT = st.text(
    st.one_of(
        st.sampled_from("aeinorst ETQ 0123456789\n.,'\"?!<>&"),
        st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")),
    ),
    max_size=30,
)
WRITTEN = st.one_of(
    TEXT,
    st.sampled_from([" leading", "trailing ", "a < b & c > d", "<think>x</think>y", "Cafe\u0301"]),
    st.tuples(TEXT, st.sampled_from(SPECIAL), TEXT).map("".join),
)


@st.composite
def conversations(draw, text=WRITTEN):
    """A system message or none, then questions and answers, and a question."""
    messages = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages.append({"role": "user", "content": draw(text)})
        messages.append({"role": "assistant", "content": draw(text)})
    return [*messages, {"role": "user", "content": draw(text)}]


class Two:
    """The tokenizers of a checkpoint and of the GGUF file written from it."""

    def __init__(self, folder, made, family="llama"):
        config = tiny.FAMILIES[family]()
        config.vocab_size = len(made)
        hf.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
        made.save_pretrained(folder)
        path = folder.with_suffix(".gguf")
        write_gguf(folder, path, "f16", checkpoint_identity(folder))
        self.study = hf.AutoTokenizer.from_pretrained(folder)
        self.model = LlamaModel(path)
        self.monitor = GGUFTokenizer(GGUFFile(path), self.model)

    def require_same(self, make):
        """Return the ids, which are the same for both."""
        study, monitor = make(self.study), make(self.monitor)
        assert study == monitor
        return study


def byte_level():
    made = tiny_tokenizers.byte_level(600, "qwen2", special=SPECIAL)
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    found = Two(tmp_path_factory.mktemp("two") / "m", byte_level())
    yield found
    found.model.close()


@pytest.fixture(scope="module", params=["prepend", "first", "always", "never"])
def pieces(request, tmp_path_factory):
    made = tiny_tokenizers.sentencepiece(700, request.param)
    found = Two(tmp_path_factory.mktemp(request.param) / "m", made)
    yield found
    found.model.close()


def with_template(two, template):
    """Set the template of both within the context."""
    stack = ExitStack()
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(GGUFTokenizer, "chat_template", template)
    patch.setattr(two.study, "chat_template", template)
    return stack


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_the_same_for_both(two, name):
    @given(conversations())
    @settings_of(max_examples=15)
    def check(messages):
        ids = two.require_same(lambda t: Encoder(t).chat(messages, add_generation_prompt=True))
        if not any(token in m["content"] for m in messages for token in SPECIAL):
            whole = two.study.apply_chat_template(messages, add_generation_prompt=True)
            assert ids == whole["input_ids"], "and what transformers itself makes of it"

    with with_template(two, TEMPLATES[name]):
        check()


@given(conversations(), st.booleans())
@settings_of(max_examples=15)
def test_a_sentencepiece_conversation_is_the_same_for_both(pieces, messages, begins):
    template = TEMPLATES["llama2" if begins else "chatml"]
    with with_template(pieces, template):
        pieces.require_same(lambda t: Encoder(t).chat(messages, add_generation_prompt=True))


@given(WRITTEN, st.lists(st.tuples(WRITTEN, WRITTEN), max_size=2))
@settings_of(max_examples=15)
def test_a_few_shot_prompt_is_the_same_for_both(two, pieces, question, before):
    for each in (two, pieces):
        each.require_same(lambda t: prompts.FewShot().encode(t, question, before))


@given(WRITTEN)
@settings_of(max_examples=15)
def test_a_template_that_begins_with_the_first_token_begins_once(pieces, question):
    with with_template(pieces, TEMPLATES["mistral1"]):
        ids = pieces.require_same(lambda t: prompts.Chat().encode(t, question))
    begin = pieces.study.bos_token_id
    assert ids[0] == begin
    assert begin not in ids[1:]


@pytest.mark.parametrize("spelled", ["</s>", "a</s>b", "<s><s>", "</s> x", "<unk>"])
def test_what_people_write_controls_nothing(two, pieces, spelled):
    for each in (two, pieces):
        control = {t for t, token in each.study.added_tokens_decoder.items() if token.special}
        few = each.require_same(lambda t: prompts.FewShot().encode(t, spelled))
        assert control.isdisjoint(few[1:])
        assert each.study.decode(few).endswith(f"Q: {spelled}\nA:")
        with with_template(each, TEMPLATES["json"]):
            chat = each.require_same(lambda t: prompts.Chat().encode(t, spelled))
        assert control.isdisjoint(chat)


def test_a_prompt_does_not_end_its_answer(tmp_path):
    """A tokenizer that adds an EOS token to every text, as some are configured to do."""
    made = tiny_tokenizers.sentencepiece(700)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    both = Two(tmp_path / "m", made)
    with both.model:
        assert both.study("a").input_ids[-1] == both.study.eos_token_id
        ids = both.require_same(lambda t: prompts.FewShot().encode(t, "a"))
        assert ids[0] == both.study.bos_token_id
        assert both.study.eos_token_id not in ids


@pytest.mark.parametrize("template", ["", "{{ raise_exception('no') }}", "{% for", "{{ 1 + 'a' }}"])
def test_a_template_that_does_not_render_is_a_sentence(two, template):
    with with_template(two, template):
        for tokenizer in (two.study, two.monitor):
            with pytest.raises(HQError, match=r"use the prompt form '?few-shot"):
                render_chat(tokenizer, [{"role": "user", "content": "x"}])


FOREIGN = {
    "llama-bpe": {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None},
    "an end after every text": {"tokenizer.ggml.add_eos_token": True},
    "both ends": {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
    "neither": {},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_study_of_a_file_reads_as_its_monitor_does(case, tmp_path, monkeypatch):
    """A file that llama.cpp's converter wrote, given as the model and to the monitor."""
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    said = FOREIGN[case] | {"tokenizer.chat_template": TEMPLATES["llama31"]}
    path = gguf_files.write(tmp_path / "model.gguf", changes=said)
    study = hf.AutoTokenizer.from_pretrained(checkpoint_of(path))
    with LlamaModel(path) as model:
        monitor = GGUFTokenizer(GGUFFile(path), model)
        for text in ("x", " two words", "a < b", "</s>", ""):
            few = [prompts.FewShot().encode(t, text) for t in (study, monitor)]
            assert few[0] == few[1]
            assert (few[0][0] == 1) == (case in ("llama-bpe", "both ends"))
            assert few[0][-1] != 2
            chat = [prompts.Chat().encode(t, text) for t in (study, monitor)]
            assert chat[0] == chat[1]
            assert chat[0].count(1) == 1, "the template's own first token, and no other"


@pytest.mark.parametrize("text", ["<s>a", "a"])
def test_a_text_that_begins_with_the_first_token_gets_no_other(pieces, text):
    assert pieces.require_same(lambda t: Encoder(t).text(text)).count(1) == 1
