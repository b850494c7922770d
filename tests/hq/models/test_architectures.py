"""Every architecture: its record, what detection makes of it, and its traces against NumPy."""

import pytest

from tests import decoders

ALL = decoders.RECORDED | decoders.DETECTED
FAST = ("cohere2", "falcon-40b", "gemma3n_text", "glm4", "mistral3", "mpt", "olmo2", "qwen2_vl")
SWEEP = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(ALL)]


def test_every_record_is_what_detection_finds(): ...
