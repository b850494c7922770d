"""What the report of detect shows of neurons: layers, errors, sizes, and the mapping."""

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.neurons import error_map, layer_bars, pareto
from harness.report.charts.style import BLUE, GREY, VERMILION
from harness.report.grids import grid
from harness.report.page import Block, Figure, Prose, Section
from harness.report.run import REFERENCE, RunFolder
from harness.tables.files import neuron_names
from harness.tables.readme_cells import code, listed, text_of
from harness.tables.readme_findings import fidelity

_SPEED, _ERRORS = "speed.csv", "neuron_errors.csv"


def neurons(run: RunFolder) -> Section:
    """Return the density of the probe's neurons, and how stable their selection is."""
    title = "Neurons by layer"
    found, model = run.neurons, run.provenance.get("model", {})
    if found is None or not model.get("d_ff"):
        text = "The folder has no neurons.json with a rectangular model, so layers are not shown."
        return Section(title, [Prose(text, "absent")])
    names = ("positive weight: H-Neurons", "negative weight")
    widths = dict.fromkeys(range(model["n_layers"]), model["d_ff"])
    if blocks := model.get("blocks"):  # layers of several widths, or with experts
        widths = dict.fromkeys(widths, 0)
        for block in blocks:
            widths[block["layer"]] += block["width"]
    layers = pl.DataFrame(
        [
            (
                layer,
                name,
                1000 * sum(n.layer == layer and (n.weight > 0) == is_h for n in found) / width,
            )
            for layer, width in widths.items()
            for name, is_h in zip(names, (True, False), strict=True)
        ],
        schema=["layer", "sign", "per_mille"],
        orient="row",
    )
    positive = [n for n in found if n.weight > 0]
    depth = sorted({n.layer for n in positive})
    figure = Figure(
        "Density of the FP16 probe's neurons, per mille of each layer",
        f"{len(found)} neurons have a weight, and {len(positive)} of them a positive one. "
        f"H-Neurons are in layers {listed([str(layer) for layer in depth])} of "
        f"{model['n_layers']}.",
        layer_bars(layers),
        layers,
        "`neurons.json`: layer, weight",
    )
    selection = grid(
        run,
        "selection",
        "How stable the selection is, by precision",
        {
            "precision": "precision",
            "neurons": "neurons",
            "fewest": "fewest of a fold",
            "most": "most",
            "in_all_folds": "in all folds",
            "fold_jaccard": "common ÷ union of two folds",
            "stable": "stable in halves",
            "expected_false": "expected false",
        },
    )
    return Section(title, [figure, selection], "`neurons.json`, `selection.csv`")


def errors(run: RunFolder) -> Section:
    """Return what quantization does to the contributions of neurons."""
    rows = run.frame("fidelity").filter(pl.col("precision") != REFERENCE)
    looks = {
        "probe": Look(BLUE, "circle"),
        "matched": Look(VERMILION, "square"),
        "any": Look(GREY, "diamond"),
    }
    blocks: list[Block] = []
    if rows.height:
        drawn = rows.filter(pl.col("group").is_in(list(looks)))
        points = points_of(drawn, "relative_error", pl.col("precision"), pl.col("group"))
        kinds = [f"{kind}: {listed(code(fidelity(run.tables, kind)))}" for kind in ("more", "less")]
        blocks.append(
            Figure(
                "Relative error of contributions, compared with similar neurons",
                "How much quantization changes the contributions of the probe's neurons, of "
                f"matched draws, and of neurons of the whole model. Outside the range of 95% of "
                f"the matched draws, {'; '.join(kinds)}.",
                forest(points, looks, "relative error of contributions (matched: 95% of draws)"),
                points.rename({"row": "precision", "series": "group"}),
                "`fidelity.csv`: relative_error",
            )
        )
    blocks.append(_error_map(run))
    return Section("Fidelity of the neurons", blocks, "`fidelity.csv`, `neuron_errors.csv`")


def _error_map(run: RunFolder) -> Block:
    of_neurons = run.file(_ERRORS)
    if of_neurons is None:
        return Prose(
            "The error of each single neuron is not shown: the folder has no `neuron_errors.csv`, "
            "which a run writes and committed tables leave out.",
            "absent",
        )
    kept = of_neurons.filter(pl.col("precision") != REFERENCE).with_columns(
        neuron=neuron_names(of_neurons)
    )
    kept = kept.sort("weight", descending=True, maintain_order=True)
    if not kept.height:
        return Prose("The run has FP16 only, so there are no errors of neurons.", "absent")
    order = [p for p in run.provenance["definition"]["precisions"] if p != REFERENCE]
    top = kept.sort("relative_error", descending=True, nulls_last=True).row(0, named=True)
    return Figure(
        "Relative error of each neuron's contribution",
        "Σ|difference| ÷ Σ FP16 over samples, one row per neuron of the FP16 probe, the largest "
        f"weight first. Largest: neuron {top['neuron']} at {top['precision']}, "
        f"{text_of(float(top['relative_error']), 2)}.",
        error_map(kept, order),
        kept.select("precision", "neuron", "weight", "relative_error"),
        f"`{_ERRORS}`: relative_error",
    )


def sizes(run: RunFolder) -> Section:
    """Return AUROC against size and speed."""
    model = run.frame("model").select("precision", "weights_mib", "bits_per_weight")
    points = run.frame("detection").select("precision", "auroc", "auroc_low", "auroc_high")
    points = points.join(model, on="precision", maintain_order="left")
    blocks: list[Block] = []
    if points.height:
        blocks.append(_pareto(points, "weights_mib", "size of all weights, MiB", smaller=True))
    speed = run.file(_SPEED)
    if speed is None:
        blocks.append(
            Prose(
                "Speed is not shown: the folder has no `speed.csv`, which a run writes and "
                "committed tables leave out, because it differs between machines.",
                "absent",
            )
        )
    elif points.height:
        timed = points.join(speed, on="precision", maintain_order="left")
        title = "prompt tokens per second, on the machine of the run"
        blocks.append(_pareto(timed, "prompt_tokens_per_second", title, smaller=False))
    table = grid(
        run,
        "model",
        "Size and loss, by precision",
        {
            "precision": "precision",
            "bits_per_weight": "bits per weight",
            "weights_mib": "weights, MiB",
            "perplexity": "perplexity",
            "kl": "KL to FP16, nats",
            "storage": "storage",
        },
    )
    return Section("Size, speed and detection", [*blocks, table], "`model.csv`, `speed.csv`")


def _pareto(points: pl.DataFrame, column: str, title: str, smaller: bool) -> Figure:
    rows = points.rows(named=True)
    sign = -1 if smaller else 1

    def is_best(row: dict[str, float]) -> bool:
        return not any(
            sign * o[column] >= sign * row[column]
            and o["auroc"] >= row["auroc"]
            and (o[column], o["auroc"]) != (row[column], row["auroc"])
            for o in rows
        )

    best = [is_best(row) for row in rows]
    drawn = points.with_columns(best=pl.Series(best, dtype=pl.Boolean)).with_columns(
        front=pl.when("best")
        .then(pl.lit("no other is better in both"))
        .otherwise(pl.lit("another is better in both"))
    )
    names = [row["precision"] for row, b in zip(rows, best, strict=True) if b]
    word = "smaller" if smaller else "faster"
    return Figure(
        f"AUROC against {title.split(',')[0]}",
        f"No other precision is both {word} and at a higher AUROC than {listed(code(names))}, by "
        "the point estimates; vertical lines are 95% intervals.",
        pareto(drawn, column, title),
        drawn.drop("best", "front"),
        f"`detection.csv`: auroc; `{'model' if smaller else 'speed'}.csv`: {column}",
    )


def mapping(run: RunFolder) -> Section:
    """Return whether neurons correspond to those of the FP16 model."""
    rows = run.tables.rows("mapping")
    complete = [r["precision"] for r in rows if r["probe_found"] == r["probe"]]
    others = [r["precision"] for r in rows if r["precision"] not in complete]
    text = (
        "At every precision, each neuron of the probe corresponds to the same neuron of the FP16 "
        "model, by the weights that were loaded."
        if not others
        else f"Neurons of the probe without a matching direction: at {listed(code(others))}."
    )
    table = grid(
        run,
        "mapping",
        "Audit of the mapping, by precision",
        {
            "precision": "precision",
            "layers": "layers",
            "bits": "bits",
            "error": "error of the weights",
            "error_worst": "in the worst layer",
            "found": "share found",
            "probe_found": "probe neurons found",
            "probe": "of",
            "h_low": "h ÷ h at FP16, 5%",
            "h_high": "95%",
        },
    )
    return Section("Mapping audit", [Prose(text), table], "`mapping.csv`")
