"""A GGUF file loaded by llama.cpp: its weights, vocabulary, and the handles that must be freed."""

import ctypes
import weakref
from functools import cached_property
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from hq.errors import HQError
from hq.llamacpp.attention import EXACT, Attention
from hq.llamacpp.context import Context
from hq.llamacpp.graph import ExpertSizes, GraphNodeFinder, GraphNodes
from hq.llamacpp.library import load_library
from hq.llamacpp.observer import GraphObserver


class LlamaModel:
    """The weights of a model. A context manager; `close` frees its contexts and then the weights.

    A model that is not closed is freed when Python collects it.

    Args:
        paths: The parts of the GGUF file, in order.
        n_gpu_layers: Number of layers on the GPU, counted from the last and including the output:
            0 for the CPU only, -1 for all layers.

    Raises HQError if llama.cpp cannot load the file, or if GPU layers are asked for without a GPU.
    """

    def __init__(self, *paths: Path, n_gpu_layers: int = 0) -> None:
        self.path = paths[0]
        self.on_host = n_gpu_layers == 0
        _require_gpu(n_gpu_layers)
        llama = load_library().llama
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = n_gpu_layers
        no_devices = (ctypes.c_void_p * 1)()  # a zero-terminated list
        if self.on_host:
            settings.devices = ctypes.addressof(no_devices)
        load_library().errors.clear()
        names = (ctypes.c_char_p * len(paths))(*map(bytes, paths))
        model = llama.llama_model_load_from_splits(names, len(paths), settings)
        if not model:
            raise HQError(f"llama.cpp cannot load {self.path}: {load_library().reason()}.")
        self.handles = NativeHandles(llama, model)
        self._free = weakref.finalize(self, self.handles.free)
        self._vocabulary = llama.llama_model_get_vocab(model)
        self.vocabulary: int = llama.llama_vocab_n_tokens(self._vocabulary)

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free contexts and weights; a second call has no effect."""
        self._free()

    def context(self, observer: GraphObserver | None, **settings: Any) -> Context:
        """Create a context; see Context for its settings."""
        return Context(self, observer, **settings)

    @property
    def handle(self) -> Any:
        """llama.cpp's model. Raises HQError if it is closed."""
        if self.handles.model is None:
            raise HQError(f"{self.path} is closed: open it again.")
        return self.handles.model

    def adapter(self, path: Path) -> Any:
        """Load a LoRA adapter for `Context.adapt` from a GGUF file; it lives as long as the model.

        Raises HQError if llama.cpp cannot load the file, or if it is for another architecture.
        """
        llama = load_library().llama
        load_library().errors.clear()
        adapter = llama.llama_adapter_lora_init(self.handle, bytes(path))
        if not adapter:
            raise HQError(f"llama.cpp cannot load the adapter {path}: {load_library().reason()}.")
        return adapter

    def graph_nodes(
        self,
        layers: int,
        d_ff: int,
        attention: Attention = EXACT,
        experts: ExpertSizes | None = None,
    ) -> GraphNodes:
        """Find the graph nodes that hold h and W_down·h by decoding one token.

        `experts` are those of a mixture, in which `d_ff` is the width of a routed expert.

        Raises HQError if there are none, or if llama.cpp computes attention in another way.
        """
        llama = load_library().llama
        finder = GraphNodeFinder(self.path.name)
        callback = llama.ggml_backend_sched_eval_callback(finder)
        with Context(
            self, None, callback=callback, attention=attention, tokens=32, batch=8
        ) as context:
            context.decode([0], [0], [0], [True])
        return finder.nodes(layers, d_ff, attention, experts)

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text. Raises HQError if the text has an unpaired surrogate."""
        vocabulary = self._open_vocabulary
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise HQError(
                f"A text has an unpaired surrogate at character {error.start}: correct it where "
                "the text was produced."
            ) from error
        size = len(raw) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            length = load_library().llama.llama_tokenize(
                vocabulary, raw, len(raw), buffer, size, add_special, parse_special
            )
            if length >= 0:
                return list(buffer[:length])
            size = -length  # the size that is needed

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token, which may be part of a character.

        Raises HQError if the model has no such token.
        """
        vocabulary = self._open_vocabulary
        if not 0 <= token < self.vocabulary:
            raise HQError(f"{self.path} has no token {token}: it has {self.vocabulary}.")
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = load_library().llama.llama_token_to_piece(
                vocabulary, token, buffer, size, 0, special
            )
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a generation."""
        llama, vocabulary = load_library().llama, self._open_vocabulary
        return frozenset(
            token for token in range(self.vocabulary) if llama.llama_vocab_is_eog(vocabulary, token)
        )

    @property
    def _open_vocabulary(self) -> Any:
        """llama.cpp's vocabulary, which is freed with the model."""
        return self.handle and self._vocabulary


class NativeHandles:
    """llama.cpp's model and its contexts, each freed exactly once.

    Contexts point into the weights, so they are freed first, in whatever order Python collects the
    objects that own them. Their finalizers hold this object, which refers to none of them.
    """

    def __init__(self, llama: ModuleType, model: Any) -> None:
        self._llama = llama
        self.model = model
        self.contexts: dict[int, Any] = {}  # by their keys
        self._keep_alive: dict[int, object] = {}  # what each context has pointers to
        self._keys = count()

    def adopt(self, context: Any, keep_alive: object) -> int:
        """Take over a new context; return its key. `keep_alive` lives as long as the context."""
        key = next(self._keys)
        self.contexts[key], self._keep_alive[key] = context, keep_alive
        return key

    def free_context(self, key: int) -> None:
        """Free a context; a second call has no effect."""
        context = self.contexts.pop(key, None)
        if context is not None:
            self._llama.llama_free(context)
            del self._keep_alive[key]

    def free(self) -> None:
        """Free every context and then the weights; a second call has no effect."""
        for key in list(self.contexts):
            self.free_context(key)
        if self.model is not None:
            self._llama.llama_model_free(self.model)
            self.model = None


def _require_gpu(layers: int) -> None:
    """Raises HQError for GPU layers if llama.cpp has no GPU, and for counts below -1."""
    if layers < -1:
        raise HQError(f"n_gpu_layers is {layers}: use -1 for all layers, 0 for the CPU, or more.")
    if layers != 0 and not load_library().gpus:
        raise HQError(
            f"n_gpu_layers = {layers} needs a GPU, but this build of llama-cpp-python finds none: "
            "rebuild it with CMAKE_ARGS=-DGGML_CUDA=on, or set n_gpu_layers to 0."
        )
