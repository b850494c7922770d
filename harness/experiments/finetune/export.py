"""What a run leaves for use: the adapter in two formats, the merged checkpoint, and their card."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from harness.experiments.finetune.nodes import ADAPTER, Training
from harness.experiments.finetune.tables import Behaviour, Capability
from harness.models.packaged import packaged_as
from harness.stages.checkpoint import FOLDER
from harness.studies.study import REFERENCE
from hq import __version__
from hq.models.checkpoint import architecture_at
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.atomic import atomic_folder, write_whole
from hq.storage.copying import copy_to_disk
from hq.tuning.adapter import read_adapter
from hq.tuning.gguf import write_gguf_lora

GGUF_FILE = "adapter.gguf"
CARD_FILE = "README.md"
ARM = "h-neurons"
"""The arm that is exported."""


def export(folder: Path, base: Path, model: ModelIdentity, tuned: Path, merged: Path) -> None:
    """Write adapter/, adapter.gguf and model/ into a folder, over those of an earlier run.

    `tuned` and `merged` are the outputs of the nodes. There is no adapter.gguf if hq cannot write
    models of the family as GGUF.
    """
    _copy(tuned / ADAPTER, folder / ADAPTER)
    _copy(merged / FOLDER, folder / FOLDER)
    family = architecture_at(base)
    (folder / GGUF_FILE).unlink(missing_ok=True)
    if family.conversion is not None:
        architecture, adapter = family.conversion.architecture, read_adapter(tuned / ADAPTER)
        write_gguf_lora(architecture, model.name, family, adapter, folder / GGUF_FILE)


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    with atomic_folder(target) as draft:
        for file in source.rglob("*"):
            if file.is_file():
                copy_to_disk(file, draft / file.relative_to(source))


def write_card(folder: Path, text: str) -> None:
    """Write the card."""
    write_whole(folder / CARD_FILE, text)


def card(
    study: str,
    model: ModelIdentity,
    training: Training,
    behaviour: Sequence[Behaviour],
    capability: Sequence[Capability],
) -> str:
    """Return the model card of the tuned model: what was trained, and what changed."""
    from huggingface_hub import ModelCardData

    origin = packaged_as(model.norm_digest)
    data = ModelCardData(
        base_model=origin.hub_id if origin else None,
        license=origin.license if origin else None,
        library_name="peft",
        tags=["hq", "h-neurons", "lora"],
    )
    texts = {use: sum(counts.values()) for use, counts in training.texts.items()}
    end = " Training ended early, because the loss on neutral text rose too far."
    about = (
        f"A LoRA for {model.name} (fingerprint {model.fingerprint}), trained with a penalty on the "
        f"contribution of its {len(training.neurons)} H-Neurons.{end if training.stopped else ''} "
        f"It is that of step {training.kept_step} of {len(training.log)}. Training texts: "
        f"{texts['penalised']} over-compliant responses, {texts['right']} right answers, "
        f"{texts['refusals']} refusals, {texts['neutral']} neutral texts."
    )
    rows = [row for row in behaviour if row.arm == ARM]
    table = "\n".join(
        f"| {r.precision} | {r.scenario} | {r.n} | {r.before} | {r.after} | {_signed(r.change)} "
        f"| {_signed(r.beyond_matched)} | {_signed(r.beyond_plain)} |"
        for r in rows
    )
    costs = "\n".join(
        f"| {r.precision} | {r.accuracy} | {_signed(r.accuracy_change)} | {r.perplexity} | "
        f"{_signed(r.loss_change)} |"
        for r in capability
        if r.arm == ARM
    )
    seed = rows[0].seed
    return f"""---
{data.to_yaml()}
---

# {study}

{fill(about, 100, break_long_words=False, break_on_hyphens=False)}

Files: `adapter/` (PEFT), `adapter.gguf` (llama.cpp, if the family can be written as GGUF),
`model/` (the merged checkpoint, with its provenance in `finetune.json`).

## Over-compliance

Share of trials in which the model complies, with 95% intervals over units; seed {seed}. The last
columns compare with a LoRA that penalises matched neurons, and with one without a penalty.

| precision | scenario | n | before | after | change | − matched | − plain |
| --- | --- | --- | --- | --- | --- | --- | --- |
{table}

## Capability

| precision | right answers | change | perplexity | change of the loss, nats |
| --- | --- | --- | --- | --- |
{costs}

## Limits

- Rates are of the trials of these scenarios, which are short, in English and judged by rules.
- The study's NeuronSet and bundles belong to the base model. The tables `detection` and `moved`
  say what became of the probe; identify neurons on the tuned model before you monitor it.
- Rows are at the precisions above; {REFERENCE} is the reference.

Made with hq {__version__}.
"""


def _signed(estimate: Any) -> str:
    if estimate is None:
        return "—"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
