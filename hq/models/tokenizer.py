"""A checkpoint's tokenizer, loaded by transformers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hq.errors import HQError, first_line

_SENTENCEPIECE = ("sentencepiece", "google.protobuf")  # what reads a tokenizer.model


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of the checkpoint in `path`. Raises HQError for one that cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        if _needs_packages(path):
            raise HQError(
                f"The tokenizer in {path} is a SentencePiece file, tokenizer.model, without a "
                "tokenizer.json: install what reads it (pip install sentencepiece protobuf), or "
                "copy the tokenizer.json of the model too."
            ) from error
        raise HQError(f"The tokenizer in {path} cannot be loaded: {first_line(error)}.") from error


def _needs_packages(path: Path) -> bool:
    """Whether only a SentencePiece file is there, and a package that reads it is not installed.

    Such a file is a protobuf message whose first field is a token; tiktoken's, which may have the
    same name, is text.
    """
    file = path / "tokenizer.model"
    if not file.is_file() or (path / "tokenizer.json").is_file():
        return False
    with open(file, "rb") as stream:
        is_message = stream.read(1) == b"\x0a"
    return is_message and not all(map(_installed, _SENTENCEPIECE))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False
