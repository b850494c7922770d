"""`hq monitor`: an answer as it is generated, coloured by what its H-Neurons say."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from harness.cli.app import app, err, json_text, out
from hq.errors import HQError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.models.gguf_tokenizer import GGUFTokenizer
    from hq.gguf.file import GGUFFile
    from hq.monitor import Step
    from hq.neurons.neuron_set import NeuronSet

Lines = Annotated[bool, typer.Option("--json", help="Print one JSON object a token, a line each.")]


@app.command()
def monitor(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    gguf: Annotated[Path, typer.Option(help="A GGUF file, or `smollm2` for the embedded one.")],
    neurons: Annotated[
        Path | None, typer.Option(help="A neurons.json of the same model, with its threshold.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="In its place a bundle for this file (`hq bundle make`).")
    ] = None,
    domain: Annotated[str, typer.Option(help="Whose threshold of the bundle counts.")] = "all",
    form: Annotated[
        str, typer.Option(help="chat or few-shot; default: the form that the set was found with.")
    ] = "",
    alpha: Annotated[
        float, typer.Option(min=0, help="Scales the H-Neurons: 0 silences them, 1 leaves them.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama.cpp.")] = 2,
    gpu_layers: Annotated[int, typer.Option(min=-1, help="Layers on a GPU; -1 for all.")] = 0,
    as_json: Lines = False,
) -> None:
    """Answer a question, and show at every token whether the H-Neurons see a hallucination.

    Green tokens speak for a right answer, red ones for a hallucinated one.
    """
    from harness.models.gguf_tokenizer import GGUFTokenizer
    from harness.models.sources import gguf_of
    from harness.scenarios import prompts
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.monitor import LlamaMonitor
    from hq.tracing.sampling import StopCriteria

    with LlamaBackend(gguf_of(gguf), threads=threads, n_gpu_layers=gpu_layers) as backend:
        found, threshold = _watched(neurons, bundle, domain, backend.file)
        tokenizer = GGUFTokenizer(backend.file, backend.model)
        asked = prompts.form(form or str(found.provenance.get("prompt", "chat")))
        ids = asked.encode(tokenizer, question)
        stops = asked.stop_ids(tokenizer)
        ending = StopCriteria(stops, asked.stop_strings, tokenizer.decode)
        places = [(neuron.layer, neuron.index) for neuron in found.positive]
        with (
            LlamaMonitor(backend, found, len(ids) + max_new_tokens) as watching,
            backend.scale(dict.fromkeys(places, alpha) if alpha != 1 else {}),
        ):
            steps = watching.answer(ids, ending, max_new_tokens)
            show = _Lines(tokenizer) if as_json else _Colours(tokenizer)
            show.answer(steps, threshold)


def _watched(
    neurons: Path | None, bundle: Path | None, domain: str, file: "GGUFFile"
) -> "tuple[NeuronSet, float]":
    """What to watch, and the threshold: of a set's calibration questions, or a bundle's domain.

    Raises HQError where not one of the two is given, or it is of another model, or file.
    """
    from hq.monitor.bundle import Bundle
    from hq.neurons.neuron_set import NeuronSet

    if neurons is not None and bundle is None:
        found = NeuronSet.load(neurons, file.identity)
        if not found.thresholds:
            raise HQError("The neuron set has no threshold: find it with `hq identify`.")
        return found, next(iter(found.thresholds.values()))
    if bundle is None or neurons is not None:
        raise HQError("Say what to watch: give either --neurons or --bundle.")
    sealed = Bundle.load(bundle)
    sealed.require(file)
    return sealed.neurons, sealed.domain(domain).threshold


class _Colours:
    """Tokens coloured by their score, over a line with the running score and the verdict."""

    def __init__(self, tokenizer: "GGUFTokenizer") -> None:
        self._tokenizer = tokenizer

    def answer(self, steps: "Iterator[Step]", threshold: float) -> None:
        """Shows them as they come."""
        answer, shown, last = Text(), "", None
        ids: list[int] = []
        started = time.perf_counter()
        with Live(answer, console=out, vertical_overflow="visible") as live:
            for last in steps:
                if not ids:
                    started = time.perf_counter()  # reading the prompt is another matter
                ids.append(last.token)
                text = self._tokenizer.decode(ids)
                if not text.endswith("\ufffd"):  # a character may take several tokens
                    piece = text[len(shown) :] if shown else text.lstrip()
                    answer.append(piece, _style(last.token_score))
                    shown = text
                live.update(Group(answer, _status(last, threshold)))
        if last is None:
            err.print("The model ended its answer before the first token.")
        elif len(ids) > 1:
            speed = (len(ids) - 1) / (time.perf_counter() - started)
            err.print(f"{len(ids)} tokens, {speed:.0f} a second")


class _Lines:
    """A JSON object a token, and one for the verdict."""

    def __init__(self, tokenizer: "GGUFTokenizer") -> None:
        self._tokenizer = tokenizer

    def answer(self, steps: "Iterator[Step]", threshold: float) -> None:
        """Prints each as it comes."""
        ids, last = [], None
        for last in steps:
            ids.append(last.token)
            _print_line(
                token=last.token,
                text=self._tokenizer.decode([last.token]),
                token_score=last.token_score,
                score=last.score,
                confidence=last.confidence,
            )
        if last is None:
            _print_line(answer="", verdict=None)
            return
        _print_line(
            answer=self._tokenizer.decode(ids).strip(),
            verdict=_verdict(last, threshold),
            score=last.score,
            threshold=threshold,
            confidence=last.confidence,
            tokens=len(ids),
        )


def _status(step: "Step", threshold: float) -> Text:
    verdict = _verdict(step, threshold)
    return Text.assemble(
        (verdict, "red" if verdict == "hallucination" else "green"),
        f": score {step.score:+.2f}, threshold {threshold:+.2f}, confidence {step.confidence:.0%}",
    )


def _verdict(step: "Step", threshold: float) -> str:
    return "hallucination" if step.score >= threshold else "no hallucination"


def _style(score: float) -> str:
    """From green (log odds -2 and below) over grey to red (2 and above)."""
    share = min(max(score / 2, -1.0), 1.0)
    grey = 170
    fade = round(grey * (1 - abs(share)))
    red, green = (230, fade) if share > 0 else (fade, 200)
    strength = abs(share)
    red = round(grey + (red - grey) * strength)
    green = round(grey + (green - grey) * strength)
    return f"rgb({red},{green},{fade})"


def _print_line(**values: object) -> None:
    sys.stdout.write(json_text(values) + "\n")
    sys.stdout.flush()
