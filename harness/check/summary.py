"""The verdicts of a gate as Markdown, for the summary of a CI job, and as one JSON object."""

import math
from pathlib import Path
from typing import Any

from harness.check.regress import Difference, as_frame
from harness.check.verdict import GroupVerdict, Report, Verdict, interval_text
from harness.tables.readme_cells import markdown_table

_HEADER = ("precision", "verdict", "worst column", "committed", "found", "tolerance", "reason")


def append_summary(report: Report, path: Path) -> None:
    """Append the verdicts to a Markdown file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(report))


def markdown(report: Report) -> str:
    """Return a heading, a row per precision, and what is wrong."""
    lines = [
        f"### hq check: {report.run}: {report.verdict}",
        "",
        markdown_table(_HEADER, map(cells, report.groups)),
        "",
        report.sentence,
        *(f"- **{group.name}**: {group.why}" for group in failed(report)),
        *(
            f"- **{group.name}**, repair: {repair}"
            for group in failed(report)
            for repair in group.repairs
        ),
    ]
    return "\n".join(lines) + "\n\n"


def failed(report: Report) -> list[GroupVerdict]:
    """Return the groups that did not pass."""
    return [group for group in report.groups if group.verdict is not Verdict.PASS]


def cells(group: GroupVerdict) -> list[str]:
    """Return the cells of a row of the table of verdicts."""
    worst = group.worst
    if worst is None:
        return [group.name, str(group.verdict), "—", "—", "—", "—", ""]
    return [
        group.name,
        str(group.verdict),
        f"{worst.name} {_row(group, worst)}".strip(),
        committed(worst),
        f"{worst.found:.4g}",
        f"{worst.allowed:.3g}",
        worst.tolerance.reason,
    ]


def committed(d: Difference) -> str:
    """Return a committed number with its interval."""
    return interval_text(*d.expected)


def as_json(report: Report) -> dict[str, Any]:
    """Return the verdicts as JSON values; docs/how-to/gate.md lists the keys."""
    regressed = [d for d in report.differences if d.regressed]
    return {
        "run": report.run,
        "against": str(report.against),
        "verdict": str(report.verdict),
        "exit_code": report.verdict.exit_code,
        "same_samples": report.same_samples,
        "compared": len(report.differences),
        "regressed": _rows(regressed),
        "errors": [
            {"precision": u.group, "table": u.table, "row": u.row, "column": u.column, "why": u.why}
            for group in report.groups
            for u in group.uncompared
        ],
        "left_out": report.left_out,
        "remade": report.remade,
        "precisions": [_group(group) for group in report.groups],
    }


def _group(group: GroupVerdict) -> dict[str, Any]:
    design = group.design
    return {
        "precision": group.name,
        "verdict": str(group.verdict),
        "exit_code": group.verdict.exit_code,
        "why": group.why,
        "compared": len(group.differences),
        "regressed": len(group.regressed),
        "worst": next(iter(_rows([group.worst] if group.worst else [])), None),
        "design": design
        and {
            "column": design.column,
            "smallest_change": design.smallest,
            "margin": design.margin,
            "n": design.n,
            "units": design.units,
            "n_needed": design.n_needed,
            "units_needed": design.units_needed,
        },
        "repairs": [
            {
                "row": repair.row,
                "threshold": repair.threshold,
                "false_alarms": {
                    how: dict(zip(("value", "low", "high"), rate, strict=True))
                    for how, rate in repair.rates.items()
                },
            }
            for repair in group.repairs
        ],
    }


def _rows(differences: list[Difference]) -> list[dict[str, Any]]:
    """Return the rows of differences, in which NaN, which JSON lacks, is null."""
    if not differences:
        return []
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in as_frame(differences).to_dicts()
    ]


def _row(group: GroupVerdict, d: Difference) -> str:
    """Return the key of the row without the precision."""
    return d.row.removeprefix(group.name).strip()
