"""llama.cpp for tests, in its exact mode: float32 throughout, one thread, one batch."""

import ctypes
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hq.llamacpp.library import load_library


class LlamaCpp:
    """A model file, its logits and its tokens."""

    def __init__(self, path: Path) -> None:
        library = load_library()
        self.llama = library.llama
        library.errors.clear()
        params = self.llama.llama_model_default_params()
        self.model = self.llama.llama_model_load_from_file(bytes(path), params)
        assert self.model, list(library.errors)
        self.vocab = self.llama.llama_model_get_vocab(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.llama.llama_model_free(self.model)

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """[tokens, vocabulary]."""
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(len(ids), 64)
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = 0  # float32
        params.flash_attn_type = 0
        context = self.llama.llama_init_from_model(self.model, params)
        assert context, list(load_library().errors)
        batch = self.llama.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert self.llama.llama_decode(context, batch) == 0
            shape = (len(ids), self.llama.llama_vocab_n_tokens(self.vocab))
            return np.ctypeslib.as_array(self.llama.llama_get_logits(context), shape=shape).copy()
        finally:
            self.llama.llama_batch_free(batch)
            self.llama.llama_free(context)

    def tokens(self, text: str, add_special: bool = True) -> list[int]:
        """Special tokens inside the text count as such."""
        raw = text.encode()
        out = (ctypes.c_int32 * (2 * len(raw) + 8))()
        count = self.llama.llama_tokenize(
            self.vocab, raw, len(raw), out, len(out), add_special, True
        )
        return list(out[:count])
