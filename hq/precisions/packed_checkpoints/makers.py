"""Libraries that make GPTQ and AWQ checkpoints, in the child process that `quantize` starts."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

DONE = "layer done"
_BATCH = 16  # texts at once, longest first: a layer has a good deal of overhead a batch


class Making(BaseModel):
    """What a packed checkpoint is made from and how."""

    model_config = ConfigDict(frozen=True)

    source: Path
    method: Literal["gptq", "awq"]
    bits: int
    group_size: int
    desc_act: bool = False
    sym: bool  # AWQ is asymmetric
    texts: tuple[tuple[int, ...], ...]  # token ids to calibrate with


@dataclass(frozen=True, slots=True)
class Maker:
    """A library: what pip and Python call it, and how it is run."""

    name: str
    module: str
    version: int  # raised where the way it is run changes what it makes
    run: Callable[[Making, Path, Callable[[], None]], None]


def _gptqmodel(making: Making, into: Path, layer_done: Callable[[], None]) -> None:
    """On a CPU in FP32, several times as fast there as FP16; scales are FP16 all the same."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    cuda = torch.cuda.is_available()
    settings = QuantizeConfig(
        bits=making.bits,
        group_size=making.group_size,
        device="cuda" if cuda else "cpu",
        desc_act=making.desc_act,
        sym=making.sym,
        quant_method=METHOD.GPTQ,
        format=FORMAT.GPTQ,
    )
    # What is not packed is saved as this; left out, as BF16, whatever the source has.
    dtype = torch.float16 if cuda else torch.float32
    model = GPTQModel.load(str(making.source), settings, dtype=dtype)
    model.layer_callback = _LayerCallback(layer_done)
    texts = [{"input_ids": list(t), "attention_mask": [1] * len(t)} for t in making.texts]
    model.quantize(texts, batch_size=_BATCH, calibration_data_min_length=1)
    model.save(str(into))


@dataclass(frozen=True, slots=True)
class _LayerCallback:
    layer_done: Callable[[], None]

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        """Called by gptqmodel, twice a layer."""
        if submodule_finalized:
            self.layer_done()


def _autoround(making: Making, into: Path, layer_done: Callable[[], None]) -> None:
    """On a CPU it computes in BF16, and saves in BF16 what it does not pack.

    In FP32 a layer takes twice as long.
    """
    import torch
    from auto_round import AutoRound, AWQConfig, OptimizedRTNConfig
    from auto_round.compressors import orchestrator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Bar(orchestrator.tqdm):  # type: ignore[misc]
        """auto-round tells of layers by this bar alone."""

        def update(self, n: float | None = 1) -> bool | None:
            layer_done()
            return bool(super().update(n))

    orchestrator.tqdm = Bar
    ids = [torch.tensor([text]) for text in making.texts]
    library = AutoRound(
        AutoModelForCausalLM.from_pretrained(making.source, dtype=torch.float16),
        tokenizer=AutoTokenizer.from_pretrained(making.source),
        alg_configs=[
            AWQConfig(),  # which searches by the rounding's settings
            OptimizedRTNConfig(bits=making.bits, group_size=making.group_size, sym=making.sym),
        ],
        # Masks said here: else tokens that end a turn count as padding where they are the same.
        dataset=[{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids],
        nsamples=len(ids),
        seqlen=min(len(text) for text in making.texts),  # shorter ones would be left out
        batch_size=1,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
        trust_remote_code=False,
    )
    library.quantize_and_save(str(into), format="auto_awq")
    (inner,) = into.iterdir()  # it names a folder by model and settings
    for file in inner.iterdir():
        file.rename(into / file.name)
    inner.rmdir()


MAKERS = {
    "gptq": Maker("gptqmodel", "gptqmodel", 2, _gptqmodel),
    "awq": Maker("auto-round", "auto_round", 1, _autoround),
}


def _main() -> None:
    # What the library prints goes to the log: stdout is the line to the parent.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    making = Making.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    MAKERS[making.method].run(making, Path(sys.argv[2]), lambda: print(DONE, file=pipe, flush=True))


if __name__ == "__main__":
    _main()
