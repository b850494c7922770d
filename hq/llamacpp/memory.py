"""What llama.cpp allocates for a model: its weights and its contexts, each freed exactly once."""

from itertools import count
from types import ModuleType
from typing import Any


class Allocated:
    """The native model and its native contexts.

    Contexts point into the weights, so they are freed first, in whatever order Python collects the
    objects that own them. Their finalizers hold this object, which refers to none of them.
    """

    def __init__(self, llama: ModuleType, model: Any) -> None:
        self._llama = llama
        self.model = model
        self.contexts: dict[int, Any] = {}  # by their keys
        self._alive: dict[int, object] = {}  # what each context has pointers to
        self._keys = count()

    def adopt(self, context: Any, alive: object) -> int:
        """The key of a new context, and keeps `alive` as long as it lives."""
        key = next(self._keys)
        self.contexts[key], self._alive[key] = context, alive
        return key

    def free_context(self, key: int) -> None:
        """Frees a context; the second call has no effect."""
        context = self.contexts.pop(key, None)
        if context is not None:
            self._llama.llama_free(context)
            del self._alive[key]

    def free(self) -> None:
        """Frees every context and then the weights; the second call has no effect."""
        for key in list(self.contexts):
            self.free_context(key)
        if self.model is not None:
            self._llama.llama_model_free(self.model)
            self.model = None
