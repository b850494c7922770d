"""`hq bake`: α folded into the weights that a model ships in, taken out again, and verified."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harness.cli.app import AsJson, app, out, print_json
from hq.errors import HQError

if TYPE_CHECKING:
    from hq.suppress.bake import BakeRecord, Verification

NOT_VERIFIED = 1
T = TypeVar("T")


@app.command()
def bake(
    model: Annotated[
        str, typer.Argument(help="A GGUF file, `smollm2`, or a checkpoint's folder.", metavar="IN")
    ],
    target: Annotated[
        Path | None, typer.Argument(help="What to write; it must not be there.", metavar="OUT")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Scales the H-Neurons: 0 silences them, 1 leaves them."),
    ] = None,
    neurons: Annotated[
        Path | None, typer.Option(help="A neurons.json of the same model.", show_default=False)
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="IN was baked: write its original, byte for byte.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="IN was baked: compare it with --against.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="The original of a baked model.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint that a quantized one was made of, where its norms do not tell "
            "(AWQ, OPT): the two are compared first.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold α into a model's own quantized weights: suppression without a callback, in any runtime.

    The scales of each H-Neuron's row of W_up are multiplied by α, and nothing is quantized again.
    Every other byte stays. What was done, and what was there before, is recorded in the output.

    hq bake --alpha 0.5 --neurons neurons.json IN OUT

    hq bake --verify OUT --against IN --neurons neurons.json

    hq bake --undo OUT RESTORED

    α = 0 is exact, and powers of two are unless a scale gets too small for its format. For any
    other α the stored scales are rounded, and the nearest α that is exact is named.

    Exit codes: 0 done or verified, 1 not verified, 2 bad input.
    """
    if undo and verify:
        raise HQError("--undo and --verify are two things: ask for one at a time.")
    if undo:
        _undo(Path(model), _given(target, _OUT), as_json)
        return
    chosen = _Chosen(_given(neurons, "--neurons"), source)
    if verify:
        original = _model(_given(against, "--against, the model that it was baked from"))
        _verify(Path(model), original, chosen, alpha, as_json)
    else:
        _bake(_model(model), _given(target, _OUT), chosen, _given(alpha, "--alpha"), as_json)


_OUT = "OUT, the file or folder to write,"


def _given(value: T | None, name: str) -> T:
    """HQError where it was not given."""
    if value is None:
        raise HQError(f"{name} is missing: see `hq bake --help`.")
    return value


@dataclass(frozen=True)
class _Chosen:
    """The file of a neuron set, and the checkpoint that proves whose neurons they are."""

    neurons: Path
    source: Path | None

    def factors(self, model: Path, alpha: float) -> dict[tuple[int, int], float]:
        """α for each H-Neuron. HQError for a set of another model, or without an H-Neuron."""
        from transformers.utils import logging

        from hq.neurons.neuron_set import NeuronSet
        from hq.suppress.bake import require_owner

        logging.disable_progress_bar()
        found = NeuronSet.load(self.neurons)
        require_owner(found, model, self.source, str(self.neurons))
        if not found.positive:
            raise HQError(f"{self.neurons} has no H-Neuron: no weight is above zero.")
        return {(neuron.layer, neuron.index): alpha for neuron in found.positive}


def _bake(model: Path, target: Path, chosen: _Chosen, alpha: float, as_json: bool) -> None:
    from hq.suppress.bake import bake as fold
    from hq.suppress.bake import nearest_factors

    factors = chosen.factors(model, alpha)
    started = time.perf_counter()
    record = fold(model, target, factors)
    seconds = time.perf_counter() - started
    closest = alpha if record.exact else nearest_factors(model, factors)[alpha]
    if as_json:
        print_json(_summary(record, target) | {"seconds": seconds, "nearest_exact": closest})
        return
    out.print(f"{_said(record)}: {target} ({seconds:.2f} s)", soft_wrap=True)
    if not record.exact:
        out.print(
            f"Scales were rounded, by half a unit of their format at most. "
            f"The nearest α that is exact: {closest:g}.",
            soft_wrap=True,
        )


def _undo(baked: Path, target: Path, as_json: bool) -> None:
    from hq.suppress.bake import undo as restore

    record = restore(baked, target)
    if as_json:
        print_json(_summary(record, target))
        return
    out.print(f"Restored, as its SHA-256 proves: {target}", soft_wrap=True)


def _verify(
    baked: Path, original: Path, chosen: _Chosen, alpha: float | None, as_json: bool
) -> None:
    from hq.suppress.bake import read_record
    from hq.suppress.bake import verify as compare

    wanted = read_record(baked).neurons[0].alpha if alpha is None else alpha
    found = compare(baked, original, chosen.factors(original, wanted))
    if as_json:
        print_json({"verified": found.holds, **asdict(found)})
    else:
        for line in _findings(found):
            out.print(line, soft_wrap=True)
    if not found.holds:
        raise typer.Exit(NOT_VERIFIED)


def _model(name: str) -> Path:
    """The file or folder that a model's name stands for."""
    from harness.models.sources import gguf_or_none
    from hq.models.checkpoint import resolve

    return gguf_or_none(name) or resolve(name)


def _summary(record: "BakeRecord", target: Path) -> dict[str, object]:
    neurons = [scaled.model_dump() for scaled in record.neurons]
    return {"target": str(target), "neurons": neurons, "exact": record.exact}


def _said(record: "BakeRecord") -> str:
    layers = len({scaled.layer for scaled in record.neurons})
    return (
        f"α = {record.neurons[0].alpha:g} baked into {len(record.neurons)} H-Neurons of {layers} "
        f"layers{', exactly' if record.exact else ''}"
    )


def _findings(found: "Verification") -> list[str]:
    if not found.holds:
        return ["Not verified:", *(f"- {problem}" for problem in found.problems)]
    lines = [
        "Verified: every byte that scales none of these neurons is the original's.",
        f"- Stored scales are off by {found.units:.2g} units of their format, dequantized weights "
        f"by {found.rows:.2g} of what one unit makes.",
        f"- Logits differ from scaling at run time by {found.logits:.3g} at most; scaling itself "
        f"moves them by {found.effect:.3g}.",
    ]
    return lines + [
        f"- α = {alpha:g} had to be rounded; the nearest that is exact: {exact:g}."
        for alpha, exact in found.nearest.items()
    ]
