"""The Python blocks of the documentation run in order on a tiny model, and its links lead to files."""

import re
from pathlib import Path
from typing import Any

import pytest

import hq
from hq.gguf.write import write_gguf
from hq.models.checkpoint import checkpoint_identity
from tests import chat_templates, tiny, tiny_tokenizers
from tests.documents import PAGES, ROOT, blocks

VOCABULARY = 512
D_FF = 1024  # so that 1 in 1,000 neurons is three


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a tokenizer and a chat template; read only."""
    folder = tmp_path_factory.mktemp("docs") / "tiny-llama"
    sizes = {"vocab_size": VOCABULARY, "intermediate_size": D_FF}
    tiny.model("llama", **sizes).half().save_pretrained(folder)
    special = (*tiny_tokenizers.SPECIAL, "<|im_start|>", "<|im_end|>")
    tokenizer = tiny_tokenizers.byte_level(VOCABULARY, special=special)
    tokenizer.chat_template = chat_templates.CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def names(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the documents say is there; the labels are told by one neuron."""
    folder = tmp_path_factory.mktemp("names")
    write_gguf(checkpoint, folder / "tiny.gguf", "f16", checkpoint_identity(checkpoint))
    texts = tiny_tokenizers.texts(60, seed=2, special=())
    prompts = [f"Q: {text[:20]} a\nA:" for text in texts]
    answers = [f" {text[-12:]}!" for text in texts]
    with hq.load(checkpoint, device="cpu") as model:
        activity = model.trace(prompts, answers).values[:, D_FF + 7]
    return {
        "MODEL": checkpoint,
        "GGUF": folder / "tiny.gguf",
        "FOLDER": folder,
        "prompts": prompts,
        "answers": answers,
        "labels": [int(value > sorted(activity)[30]) for value in activity],
        "subjects": [f"subject {i // 2}" for i in range(60)],
    }


# How many blocks a document has at least, and names that they leave.
DOCUMENTS = {
    "docs/api.md": (12, {"scores", "at_nf4", "at_gguf", "scaled", "silenced", "steps"}),
    "README.md": (1, {"scores", "text"}),
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_blocks_of_a_document_run(document: str, names: dict[str, Any]) -> None:
    found, (count, left) = blocks(document, "python"), DOCUMENTS[document]
    assert len(found) >= count
    namespace = dict(names)
    for number, block in enumerate(found):
        exec(compile(block, f"{document}, block {number}", "exec"), namespace)
    assert left <= namespace.keys()


def test_no_other_page_has_python() -> None:
    assert {page for page in PAGES if blocks(page, "python")} == set(DOCUMENTS)


@pytest.mark.parametrize("document", [*PAGES, "CHANGELOG.md"])
def test_links_to_files_of_the_tree_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    files = [link for link in links if "://" not in link]
    for link in files:
        assert ((ROOT / document).parent / link).exists(), link
