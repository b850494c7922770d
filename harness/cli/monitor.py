"""`hq monitor`: an answer as it is generated, coloured by the score of its H-Neurons."""

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
    from hq.monitor.bundle import Bundle
    from hq.neurons.neuron_set import NeuronSet


@app.command("monitor")
def monitor_command(
    question: Annotated[str, typer.Argument(help="The question to answer.")],
    gguf: Annotated[Path, typer.Option(help="A GGUF file, or `smollm2` for the embedded model.")],
    neurons: Annotated[
        Path | None,
        typer.Option(
            help="A neurons.json of the same model, with its threshold. Give either this or "
            "--bundle."
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle made for this file by `hq bundle make`.")
    ] = None,
    domain: Annotated[
        str,
        typer.Option(help="The domain of the bundle that has the threshold, such as capital."),
    ] = "all",
    precision: Annotated[
        str,
        typer.Option(
            help="Precision of the file; a suffix says how it is run: gguf-source+fa, +kv-q8_0 or "
            "+kv-q4_0 (see `hq list precisions`). Default: as the bundle, else gguf-source."
        ),
    ] = "",
    form: Annotated[
        str,
        typer.Option(
            help="Prompt form, chat or few-shot; default: the form that the neurons were "
            "identified with."
        ),
    ] = "",
    alpha: Annotated[
        float,
        typer.Option(
            min=0, help="Factor of the H-Neurons' activations: 0 silences them, 1 changes nothing."
        ),
    ] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="The largest length of the answer, in tokens.")
    ] = 128,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of llama.cpp.")] = 2,
    gpu_layers: Annotated[
        int, typer.Option(min=-1, help="Number of layers on a GPU; -1 for all.")
    ] = 0,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON object per token and one for the verdict."),
    ] = False,
) -> None:
    """Answer a question and show after every token whether the H-Neurons signal a hallucination.

    Green tokens are evidence for a right answer, red ones for a hallucinated one. Example:
    `hq monitor "What is the capital of Peru?" --gguf smollm2 --bundle bundle`.
    """
    from harness.models.gguf_tokenizer import GGUFTokenizer
    from harness.models.sources import gguf_of
    from harness.scenarios import prompts
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.monitor import LlamaMonitor
    from hq.monitor.bundle import Bundle
    from hq.precisions.gguf import GGUF_SOURCE
    from hq.tracing.sampling import StopCriteria

    source = _source(neurons, bundle)
    if isinstance(source, Bundle):
        precision = precision or source.source_precision
        source.require_attention(precision)
    with LlamaBackend(
        gguf_of(gguf), precision or GGUF_SOURCE, threads=threads, n_gpu_layers=gpu_layers
    ) as backend:
        neuron_set, threshold = _probe(source, domain, backend.file)
        combination = source.facts.combination if isinstance(source, Bundle) else None
        tokenizer = GGUFTokenizer(backend.file, backend.model)
        prompt_form = prompts.form(form or str(neuron_set.provenance.get("prompt", "chat")))
        ids = prompt_form.encode(tokenizer, question)
        stop = StopCriteria(
            prompt_form.stop_ids(tokenizer), prompt_form.stop_strings, tokenizer.decode
        )
        h_neurons = [neuron.position for neuron in neuron_set.positive]
        with (
            LlamaMonitor(backend, neuron_set, len(ids) + max_new_tokens, combination) as watching,
            backend.scale(dict.fromkeys(h_neurons, alpha) if alpha != 1 else {}),
        ):
            steps = watching.answer(ids, stop, max_new_tokens)
            view = _JSONLines(tokenizer) if as_json else _ColouredText(tokenizer)
            view.show(steps, threshold)


def _source(neurons: Path | None, bundle: Path | None) -> "Path | Bundle":
    """The NeuronSet's file, or the bundle. Raises HQError if not exactly one of them is given."""
    from hq.monitor.bundle import Bundle

    if neurons is not None and bundle is None:
        return neurons
    if bundle is not None and neurons is None:
        return Bundle.load(bundle)
    raise HQError("There must be one source of neurons: give either --neurons or --bundle.")


def _probe(source: "Path | Bundle", domain: str, file: "GGUFFile") -> "tuple[NeuronSet, float]":
    """The neurons to watch with the threshold: a set's, or that of a bundle's domain.

    Raises HQError if the source does not fit the model file, or has no threshold.
    """
    from hq.neurons.neuron_set import NeuronSet

    if not isinstance(source, Path):
        source.require(file)
        return source.neurons, source.domain(domain).threshold
    neuron_set = NeuronSet.load(source, file.identity)
    if not neuron_set.thresholds:
        raise HQError(f"{source} has no threshold: write it with `hq identify`.")
    return neuron_set, next(iter(neuron_set.thresholds.values()))


class _ColouredText:
    """Tokens coloured by their score, above a line with the running score and the verdict."""

    def __init__(self, tokenizer: "GGUFTokenizer") -> None:
        self._tokenizer = tokenizer

    def show(self, steps: "Iterator[Step]", threshold: float) -> None:
        """Show the tokens as they are generated."""
        answer, shown, last = Text(), "", None
        ids: list[int] = []
        started = time.perf_counter()
        with Live(answer, console=out, vertical_overflow="visible") as live:
            for last in steps:
                if not ids:
                    started = time.perf_counter()  # excludes reading the prompt
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
            err.print(f"{len(ids)} tokens, {speed:.0f} per second")


class _JSONLines:
    """A JSON object per token, and one for the verdict."""

    def __init__(self, tokenizer: "GGUFTokenizer") -> None:
        self._tokenizer = tokenizer

    def show(self, steps: "Iterator[Step]", threshold: float) -> None:
        """Print the objects as tokens are generated."""
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
    """A colour from green (log odds -2 or less) through grey to red (2 or more)."""
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
