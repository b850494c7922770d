"""Make the demonstration's data from finished runs of the default study.

`python -m harness.demo.making RUN TOKENS` keeps what scores and labels need: samples without token
ids, scores, and the token scores of the first answers, from a run of `detect` and one of `tokens`.
The tables that the gate compares with are computed from them.
"""

import json
import shutil
import sys
from pathlib import Path

from harness.demo.demo import COMMITTED, DATA, NEURONS, write_tables_of_scores
from harness.tables.provenance import PROVENANCE_FILE, read_provenance
from hq.errors import HQError
from hq.storage.atomic import write_whole

_KEPT = ("id", "relation", "question", "text", "answer", "hallucinated", "unit", "fold")
_ANSWERS = 100  # with token scores


def make(run: Path, tokens: Path) -> None:
    """Write the data. Raises HQError if the runs are of other kinds or of other samples."""
    facts, of_tokens = read_provenance(run), read_provenance(tokens)
    if (facts["kind"], of_tokens["kind"]) != ("detect", "tokens"):
        raise HQError("Give the folder of a run of detect, and of one of tokens.")
    name = "samples.jsonl"
    if (run / name).read_bytes() != (tokens / name).read_bytes():
        raise HQError(f"{run} and {tokens} have other samples: run both on the same study.")
    samples = [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]
    write_whole(DATA / name, _lines([{key: s[key] for key in _KEPT} for s in samples]))
    for copied in ("scores.csv", NEURONS):
        shutil.copyfile(run / copied, DATA / copied)
    shown = {sample["id"] for sample in samples[:_ANSWERS]}
    scored = (tokens / "token_scores.jsonl").read_text(encoding="utf-8").splitlines()
    of_shown = [line for line in map(json.loads, scored) if line["id"] in shown]
    write_whole(DATA / "token_scores.jsonl", _lines(of_shown))
    source = {key: facts[key] for key in ("study", "fingerprint", "model", "statistics")}
    definition = {key: facts["definition"][key] for key in ("precisions", "seed")}
    kept = {**source, "kind": "scores", "definition": definition, "nodes": {}}
    write_whole(DATA / PROVENANCE_FILE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    write_tables_of_scores(COMMITTED)


def _lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:3]))
