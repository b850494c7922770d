"""The release gate: a verdict per precision on a run, or on a study before it runs."""

from collections.abc import Collection, Sequence
from pathlib import Path

from harness.check.comparability import facts_differ, schemas_differ
from harness.check.design import Design, designs, enough, grown
from harness.check.limits import Gate, RepairColumns, read_limits
from harness.check.regress import (
    STUDY,
    Compared,
    Difference,
    Uncompared,
    compare_tables,
)
from harness.check.verdict import (
    OF_MEANING,
    GroupVerdict,
    Repair,
    Report,
    Verdict,
    describe,
    worst,
)
from harness.tables.contents import read_contents
from harness.tables.files import read_table
from harness.tables.provenance import Facts, precisions, read_provenance
from hq.errors import HQError


def judge(run: Path, against: Path, asked: Sequence[str] | None = None) -> Report:
    """Compare a finished run with committed tables, and return the verdicts.

    Args:
        run: Folder of a finished run.
        against: Folder of committed tables with tolerances.toml.
        asked: Precisions that both must have; by default, those of the run.

    Raises:
        HQError: If a folder is not of a finished run, or if tolerances are malformed.
    """
    new, committed = read_provenance(run), read_provenance(against)
    contents = read_contents(against)
    wanted = list(asked or precisions(new))
    why = facts_differ(str(run), new, against, committed) or schemas_differ(
        run, read_contents(run), against, contents
    )
    if why is not None:
        read_limits(against)  # malformed tolerances are an error in any case
        return _incomparable(str(run), against, wanted, why)
    compared = compare_tables(run, against, wanted)
    possible = designs(against, contents.keys, compared.limits, wanted, compared.remade)
    lacking = {
        p: f"{folder} has no rows of {p}: {fix}"
        for facts, folder, fix in (
            (new, run, "run the study at this precision."),
            (committed, against, "accept a run of this precision first."),
        )
        for p in wanted
        if p not in precisions(facts)
    }
    groups = []
    for name in _groups(wanted, compared):
        if name in lacking:
            groups.append(GroupVerdict(name, Verdict.INCOMPARABLE, lacking[name]))
        else:
            groups.append(_judged(name, compared, possible.get(name), run))
    if not compared.differences and not lacking:
        why = f"{run} and {against} have no row in common: give results of the same study."
        return _incomparable(str(run), against, wanted, why)
    left_out = [p for p in precisions(committed) if p not in wanted]
    remade = [p for p in wanted if p in compared.remade]
    return Report(str(run), against, groups, compared.same_samples, left_out, remade)


def judge_design(name: str, new: Facts, against: Path) -> Report:
    """Return what is known before a study runs: whether its tables can be compared, and decide.

    `new` has the fingerprint, kind, study, definition, and nodes of the study `name`, as provenance
    has them. The verdicts are pass, inconclusive and incomparable. Raises HQError as `judge`.
    """
    committed, contents = read_provenance(against), read_contents(against)
    limits, wanted = read_limits(against), precisions(new)
    why = facts_differ(f"The study {name}", new, against, committed)
    if why is not None:
        return _incomparable(name, against, wanted, why)
    possible = designs(against, contents.keys, limits, wanted)
    groups = []
    for group in dict.fromkeys([*wanted, *possible]):
        if group in wanted and group not in precisions(committed):
            why = f"{against} has no rows of {group}: accept a run of this precision first."
            groups.append(GroupVerdict(group, Verdict.INCOMPARABLE, why))
            continue
        design = possible.get(group)
        unable = design is not None and not design.decides
        groups.append(
            GroupVerdict(
                group,
                Verdict.INCONCLUSIVE if unable else Verdict.PASS,
                f"{against} cannot decide: {design.sentence}" if design and unable else "",
                design=design,
            )
        )
    return Report(name, against, groups, None)


def _incomparable(run: str, against: Path, wanted: Collection[str], why: str) -> Report:
    groups = [GroupVerdict(name, Verdict.INCOMPARABLE, why) for name in wanted]
    return Report(run, against, groups, same_samples=False)


def _groups(wanted: Collection[str], compared: Compared) -> list[str]:
    """Return the precisions, and STUDY if rows of none were compared or should have been."""
    return [*({STUDY} & compared.committed), *wanted]


def _judged(name: str, compared: Compared, design: Design | None, run: Path) -> GroupVerdict:
    differences = [d for d in compared.differences if d.group == name]
    uncompared = [u for u in compared.uncompared if u.group == name]
    regressed = sorted((d for d in differences if d.regressed), key=lambda d: -d.used)
    gate = compared.limits.gate
    reasons = [
        *((Verdict.INCOMPARABLE, _error(u)) for u in uncompared),
        *((OF_MEANING[d.tolerance.means], describe(d)) for d in regressed),
        *((Verdict.INCONCLUSIVE, why) for why in _undecided(differences, gate, design)),
    ]
    if not differences and not uncompared and name in compared.committed:
        why = f"No committed row of {name} is in {run}: run all of the study."
        reasons.append((Verdict.INCOMPARABLE, why))
    verdict = worst(v for v, _ in reasons)
    within = f"{len(differences)} numbers are within their tolerances."
    why = next((why for v, why in reasons if v is verdict), within)
    repairs: list[Repair] = []
    if verdict is Verdict.THRESHOLD_STALE and gate is not None and gate.repair is not None:
        repairs = _repairs(gate.repair, run, name, regressed)
    return GroupVerdict(name, verdict, why, differences, uncompared, design, repairs)


def _error(u: Uncompared) -> str:
    place = f"{u.name} of {u.row}" if u.row else f"The table {u.table}"
    return f"{place} could not be compared: {u.why}."


def _undecided(
    differences: Sequence[Difference], gate: Gate | None, design: Design | None
) -> list[str]:
    """Say why a loss of the margin is not ruled out, although no number regressed.

    By design, or because the loss plus its tolerance reaches the margin: tolerances are chosen to
    contain the changes of healthy reruns, so the true loss may be as large.
    """
    whys = []
    if design is not None and not design.decides:
        whys.append(f"The gate cannot decide: {design.sentence}")
    if gate is None:
        return whys
    for d in differences:
        if d.name == gate.column and not d.regressed and d.loss + d.allowed >= gate.margin:
            whys.append(_wide(d, gate.margin, design))
    return whys


def _wide(d: Difference, margin: float, design: Design | None) -> str:
    room = margin - d.loss
    size = ""
    if d.tolerance.half_widths is not None and room > 0 and design and design.n is not None:
        size = f"{grown(design.n, (d.allowed / room) ** 2):,} samples"
    lost = d.loss + d.allowed
    return (
        f"{d.name} of {d.row} changed by {d.found - d.expected.value:+.3g}, within "
        f"±{d.allowed:.3g} of no change, so a loss of up to {lost:.3g} is possible, and the margin "
        f"is {margin:g}: "
        f"{enough(size)}"
    )


def _repairs(
    repair: RepairColumns, run: Path, group: str, regressed: Sequence[Difference]
) -> list[Repair]:
    """Return the repaired thresholds of the run, of the rows with stale rates if there are any."""
    frame = read_table(run, repair.table)
    columns = [repair.threshold, *repair.rates.values()]
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise HQError(
            f"{run / repair.table}.csv has no column {missing[0]!r}, which gate.repair names: "
            "correct tolerances.toml."
        )
    keys = read_contents(run).keys[repair.table]
    stale = {d.row for d in regressed if d.table == repair.table}
    rows = [
        row
        for row in frame.iter_rows(named=True)
        if row.get("precision", group) == group
        and (repair.only is None or repair.only in [str(row[key]) for key in keys])
    ]
    rows = [r for r in rows if " ".join(str(r[key]) for key in keys) in stale] or rows
    return [
        Repair(
            {k: row[k] for k in keys if k != "precision" and row[k] != repair.only},
            row[repair.threshold],
            {
                how: (row[c], row.get(f"{c}_low"), row.get(f"{c}_high"))
                for how, c in repair.rates.items()
            },
        )
        for row in rows
    ]
