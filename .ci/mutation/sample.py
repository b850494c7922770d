"""Keep a random sample of the mutants of a cosmic-ray session, and count the killed ones.

    python sample.py draw SESSION.sqlite --count 28 --seed 0
    python sample.py rate SESSION.sqlite --place cett

Left out before the draw, because no test of behaviour can or need kill them: mutants of type
annotations, of the text of an error, and arithmetic replaced by operators on bits, which floats do
not have. `equivalent.csv` names mutants that were read one by one and cannot change a result.
"""

# ruff: noqa: T201

import argparse
import ast
import csv
import random
import re
from pathlib import Path

from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

EQUIVALENT = Path(__file__).with_name("equivalent.csv")
BITS = r"BinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(RShift|LShift|BitOr|BitAnd|BitXor)$"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    draw_options = commands.add_parser("draw", help="skip all mutants but a random sample")
    draw_options.add_argument("--count", type=int, required=True)
    draw_options.add_argument("--seed", type=int, required=True)
    rate_options = commands.add_parser("rate", help="print a row: killed, equivalent, survived")
    rate_options.add_argument("--place", required=True)
    rate_options.add_argument("--seed", type=int, required=True)
    for options in (draw_options, rate_options):
        options.add_argument("session")
    chosen = parser.parse_args()
    database = WorkDB(chosen.session, WorkDB.Mode.open)
    if chosen.command == "draw":
        draw(database, chosen.count, chosen.seed)
    else:
        rate(database, chosen.place, chosen.seed)


def draw(database: WorkDB, count: int, seed: int) -> None:
    """Mark all mutants as skipped but `count` of those that a test can kill."""
    mutants = {item.job_id: item.mutations[0] for item in database.work_items}
    hidden = {path: hidden_lines(path) for path in {m.module_path for m in mutants.values()}}
    open_to_tests = sorted(
        (job for job, m in mutants.items() if not is_hidden(m, hidden[m.module_path])),
        key=lambda job: key(mutants[job]),
    )
    kept = set(random.Random(seed).sample(open_to_tests, min(count, len(open_to_tests))))
    skipped = WorkResult(output="not drawn", worker_outcome=WorkerOutcome.SKIPPED)
    database.set_multiple_results([job for job in mutants if job not in kept], skipped)
    print(f"{len(kept)} of {len(open_to_tests)} mutants (of {len(mutants)} before filters)")


def rate(database: WorkDB, place: str, seed: int) -> None:
    """Print the row of docs/mutation.csv of a session, and the survivors above it."""
    with open(EQUIVALENT, encoding="utf-8", newline="") as file:
        equivalent = {(row["module"], row["line"], row["mutant"]) for row in csv.DictReader(file)}
    mutants = {item.job_id: item.mutations[0] for item in database.work_items}
    counts = {"killed": 0, "equivalent": 0, "survived": 0}
    for job, result in database.results:
        if result.worker_outcome == WorkerOutcome.SKIPPED:
            continue
        if result.test_outcome != TestOutcome.SURVIVED:
            counts["killed"] += 1
            continue
        name = (mutants[job].module_path.as_posix(), *changed_line(result.diff))
        counts["equivalent" if name in equivalent else "survived"] += 1
        if name not in equivalent:
            print("survived:", *name, sep="\n    ")
    total, killed = sum(counts.values()), counts["killed"]
    print(f"{killed / (total - counts['equivalent']):.0%} of {place} killed")
    print(place, total, *counts.values(), seed, sep=",")


def changed_line(diff: str) -> tuple[str, str]:
    """The first line that a mutant changes, before and after."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return tuple(next(n[1:].strip() for n in lines if n.startswith(sign)) for sign in "-+")


def hidden_lines(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations and the errors of a module begin and end."""
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            nodes.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.append(node.returns)
        elif isinstance(node, ast.Raise):
            nodes.append(node)
    return [
        ((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None
    ]


def is_hidden(mutant: MutationSpec, hidden: list[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
    """Whether a mutant lies in an annotation or an error, or needs operators on bits."""
    inside = any(start <= mutant.start_pos and mutant.end_pos <= end for start, end in hidden)
    return inside or re.search(BITS, mutant.operator_name) is not None


def key(mutant: MutationSpec) -> tuple[str, tuple[int, int], str, int]:
    """An order that does not depend on the session."""
    return (
        *(mutant.module_path.as_posix(), mutant.start_pos),
        *(mutant.operator_name, mutant.occurrence),
    )


if __name__ == "__main__":
    main()
