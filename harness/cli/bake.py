"""`hq bake`: bake α into the weights of a model file, undo that, or verify it."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harness.cli.app import AsJson, app, out, print_json
from hq.errors import HQError

if TYPE_CHECKING:
    from hq.neurons.factors import Factors
    from hq.suppress.bake import BakeRecord, Verification

NOT_VERIFIED = 1
_T = TypeVar("_T")


@app.command("bake")
def bake_command(
    model: Annotated[
        str, typer.Argument(help="A GGUF file, `smollm2`, or a checkpoint folder.", metavar="IN")
    ],
    target: Annotated[
        Path | None, typer.Argument(help="The path to write; it must not exist.", metavar="OUT")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Factor of the H-Neurons: 0 suppresses them, 1 keeps them."),
    ] = None,
    neurons: Annotated[
        Path | None, typer.Option(help="A neurons.json of the same model.", show_default=False)
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Write the original of the baked model IN to OUT.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the baked model IN with --against.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="The original of a baked model.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="The source of a quantized checkpoint, if norms do not show it (AWQ, OPT); their "
            "weights are compared first.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bake α into the stored weights of a model: suppression without a callback, in any runtime.

    The scales of each H-Neuron's row of W_up are multiplied by α; nothing is
    requantized, and all other bytes stay the same. The output has a record of
    the change and of the replaced bytes.

    hq bake --alpha 0.5 --neurons neurons.json IN OUT

    hq bake --verify OUT --against IN --neurons neurons.json

    hq bake --undo OUT RESTORED

    α = 0 is exact. So is a power of two, unless a scale becomes too small for its
    format. With any other α the stored scales are rounded, and the nearest exact
    α is printed.

    Exit codes: 0 done or verified, 1 not verified, 2 bad input.
    """
    if undo and verify:
        raise HQError("--undo and --verify exclude each other: use one at a time.")
    if undo:
        _undo(Path(model), _require(target, _OUT), as_json)
        return
    selection = _Selection(_require(neurons, "--neurons"), source)
    if verify:
        original = _model(_require(against, "--against, the model that it was baked from,"))
        _verify(Path(model), original, selection, alpha, as_json)
    else:
        path = _model(model)
        _bake(path, _require(target, _OUT), selection, _require(alpha, "--alpha"), as_json)


_OUT = "OUT, the file or folder to write,"


def _require(value: _T | None, name: str) -> _T:
    """The value. Raises HQError if it was not given."""
    if value is None:
        raise HQError(f"{name} is missing: see `hq bake --help`.")
    return value


@dataclass(frozen=True)
class _Selection:
    """The file of a neuron set, and the source checkpoint to which the set belongs."""

    neurons: Path
    source: Path | None

    def factors(self, model: Path, alpha: float) -> "Factors":
        """α for each H-Neuron. Raises HQError for a set of another model or without H-Neurons."""
        from transformers.utils import logging

        from hq.neurons.neuron_set import NeuronSet
        from hq.suppress.bake import require_owner

        logging.disable_progress_bar()
        neuron_set = NeuronSet.load(self.neurons)
        require_owner(neuron_set, model, self.source, str(self.neurons))
        if not neuron_set.positive:
            raise HQError(f"{self.neurons} has no H-Neuron: no weight is above zero.")
        return {neuron.position: alpha for neuron in neuron_set.positive}


def _bake(model: Path, target: Path, selection: _Selection, alpha: float, as_json: bool) -> None:
    from hq.suppress.bake import bake, nearest_factors

    factors = selection.factors(model, alpha)
    started = time.perf_counter()
    record = bake(model, target, factors)
    seconds = time.perf_counter() - started
    nearest = alpha if record.exact else nearest_factors(model, factors)[alpha]
    if as_json:
        print_json(_fields(record, target) | {"seconds": seconds, "nearest_exact": nearest})
        return
    out.print(f"{_description(record)}: {target} ({seconds:.2f} s)", soft_wrap=True)
    if not record.exact:
        out.print(
            f"Scales were rounded, by at most half a unit in the last place. "
            f"The nearest exact α: {nearest:g}.",
            soft_wrap=True,
        )


def _undo(baked: Path, target: Path, as_json: bool) -> None:
    from hq.suppress.bake import undo

    record = undo(baked, target)
    if as_json:
        print_json(_fields(record, target))
        return
    out.print(f"Restored, with the SHA-256 of the original: {target}", soft_wrap=True)


def _verify(
    baked: Path, original: Path, selection: _Selection, alpha: float | None, as_json: bool
) -> None:
    from hq.suppress.bake import read_record, verify_baked

    expected = read_record(baked).neurons[0].alpha if alpha is None else alpha
    verification = verify_baked(baked, original, selection.factors(original, expected))
    if as_json:
        print_json({"verified": verification.is_verified, **asdict(verification)})
    else:
        for line in _lines(verification):
            out.print(line, soft_wrap=True)
    if not verification.is_verified:
        raise typer.Exit(NOT_VERIFIED)


def _model(name: str) -> Path:
    """The file or folder of a model."""
    from harness.models.sources import gguf_or_none
    from hq.models.checkpoint import resolve

    return gguf_or_none(name) or resolve(name)


def _fields(record: "BakeRecord", target: Path) -> dict[str, object]:
    neurons = [scaled.model_dump() for scaled in record.neurons]
    return {"target": str(target), "neurons": neurons, "exact": record.exact}


def _description(record: "BakeRecord") -> str:
    layers = len({scaled.layer for scaled in record.neurons})
    return (
        f"α = {record.neurons[0].alpha:g} baked into {len(record.neurons)} H-Neurons of {layers} "
        f"layers{', exactly' if record.exact else ''}"
    )


def _lines(verification: "Verification") -> list[str]:
    if not verification.is_verified:
        return ["Not verified:", *(f"- {problem}" for problem in verification.problems)]
    lines = [
        "Verified: all bytes that do not scale these neurons are those of the original.",
        f"- Stored scales are off by at most {verification.units:.2g} units in the last place "
        f"(ULP), dequantized weights by {verification.rows:.2g} times the effect of one ULP.",
        f"- Logits differ from scaling at run time by {verification.logits:.3g} at most; scaling "
        f"itself changes them by up to {verification.effect:.3g}.",
    ]
    return lines + [
        f"- α = {alpha:g} had to be rounded; the nearest exact α: {exact:g}."
        for alpha, exact in verification.nearest.items()
    ]
