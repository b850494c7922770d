"""A checkpoint's tokenizer, loaded by transformers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hq.errors import HQError, first_line

_SENTENCEPIECE = ("sentencepiece", "google.protobuf")  # packages that read a tokenizer.model


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of the checkpoint in `path`. Raises HQError if that fails."""
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        if _needs_packages(path):
            raise HQError(
                f"The tokenizer in {path} is a SentencePiece file, tokenizer.model, without a "
                "tokenizer.json: install the packages that read it (pip install sentencepiece "
                "protobuf), or copy the model's tokenizer.json too."
            ) from error
        raise HQError(f"The tokenizer in {path} cannot be loaded: {first_line(error)}.") from error


def _needs_packages(path: Path) -> bool:
    """Whether there is only a SentencePiece file and a package that reads it is not installed.

    A SentencePiece file is a protobuf message that begins with a token; a file of tiktoken may have
    the same name and is text.
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
    except ModuleNotFoundError:  # of the parent package
        return False
