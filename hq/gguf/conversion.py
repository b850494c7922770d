"""Which checkpoints can be written as GGUF: those whose architecture record has a conversion."""

from hq.errors import HQError
from hq.models.architectures import RECORDS
from hq.models.architectures.record import Conversion, Metadata, Value, Weights

__all__ = ["Conversion", "Metadata", "Value", "Weights", "conversion_of"]


def conversion_of(model_type: str) -> Conversion:
    """The conversion by the `model_type` of a text config.

    Raises HQError for a type whose record has none.
    """
    found = RECORDS[model_type].conversion if model_type in RECORDS else None
    if found is None:
        written = sorted(name for name in RECORDS if RECORDS[name].conversion is not None)
        raise HQError(
            f"A model of type {model_type!r} cannot be written as GGUF: hq writes "
            f"{', '.join(written)}; use a precision of the torch backend."
        )
    return found
