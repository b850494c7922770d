"""The libraries that quantize to GPTQ and AWQ; `quantize_checkpoint` runs this module."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

LAYER_DONE = "layer done"
_BATCH = 16  # texts per batch, longest first, as each layer has a large overhead per batch


class QuantizationJob(BaseModel):
    """The source and the settings of a packed checkpoint."""

    model_config = ConfigDict(frozen=True)

    source: Path
    method: Literal["gptq", "awq"]
    bits: int
    group_size: int
    desc_act: bool = False
    sym: bool  # False for AWQ
    texts: tuple[tuple[int, ...], ...]  # token ids for calibration


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A library: its names in pip and Python, and how it is run."""

    name: str
    module: str
    version: int  # increased when a change in `run` changes the checkpoints
    run: Callable[[QuantizationJob, Path, Callable[[], None]], None]


def _gptqmodel(job: QuantizationJob, into: Path, layer_done: Callable[[], None]) -> None:
    """Quantize with GPTQ: on a CPU in FP32, which is several times as fast; scales are FP16."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    cuda = torch.cuda.is_available()
    settings = QuantizeConfig(
        bits=job.bits,
        group_size=job.group_size,
        device="cuda" if cuda else "cpu",
        desc_act=job.desc_act,
        sym=job.sym,
        quant_method=METHOD.GPTQ,
        format=FORMAT.GPTQ,
    )
    # The type of all weights that are not packed; by default BF16, whatever the source has.
    dtype = torch.float16 if cuda else torch.float32
    model = GPTQModel.load(str(job.source), settings, dtype=dtype)
    model.layer_callback = _LayerCallback(layer_done)
    texts = [{"input_ids": list(t), "attention_mask": [1] * len(t)} for t in job.texts]
    model.quantize(texts, batch_size=_BATCH, calibration_data_min_length=1)
    model.save(str(into))


@dataclass(frozen=True, slots=True)
class _LayerCallback:
    layer_done: Callable[[], None]

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        """Called by gptqmodel twice per layer."""
        if submodule_finalized:
            self.layer_done()


def _autoround(job: QuantizationJob, into: Path, layer_done: Callable[[], None]) -> None:
    """Quantize with AWQ: on a CPU in BF16, which is also the type of weights that are not packed.

    A layer takes twice as long in FP32.
    """
    import torch
    from auto_round import AutoRound, AWQConfig, OptimizedRTNConfig
    from auto_round.compressors import orchestrator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Bar(orchestrator.tqdm):  # type: ignore[misc]
        """The progress bar, which is all that auto-round reports of layers."""

        def update(self, n: float | None = 1) -> bool | None:
            layer_done()
            return bool(super().update(n))

    orchestrator.tqdm = Bar
    ids = [torch.tensor([text]) for text in job.texts]
    library = AutoRound(
        AutoModelForCausalLM.from_pretrained(job.source, dtype=torch.float16),
        tokenizer=AutoTokenizer.from_pretrained(job.source),
        alg_configs=[
            AWQConfig(),  # searches with the settings of the rounding
            OptimizedRTNConfig(bits=job.bits, group_size=job.group_size, sym=job.sym),
        ],
        # Explicit masks: end-of-turn tokens would count as padding if the two tokens are the same.
        dataset=[{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids],
        nsamples=len(ids),
        seqlen=min(len(text) for text in job.texts),  # shorter texts would be dropped
        batch_size=1,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
        trust_remote_code=False,
    )
    library.quantize_and_save(str(into), format="auto_awq")
    (inner,) = into.iterdir()  # a folder named after model and settings
    for file in inner.iterdir():
        file.rename(into / file.name)
    inner.rmdir()


QUANTIZERS = {
    "gptq": Quantizer("gptqmodel", "gptqmodel", 2, _gptqmodel),
    "awq": Quantizer("auto-round", "auto_round", 1, _autoround),
}


def _main() -> None:
    # The library's output goes to stderr, the log: stdout reports layers to the parent.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = QuantizationJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))

    def layer_done() -> None:
        print(LAYER_DONE, file=pipe, flush=True)

    QUANTIZERS[job.method].run(job, Path(sys.argv[2]), layer_done)


if __name__ == "__main__":
    _main()
