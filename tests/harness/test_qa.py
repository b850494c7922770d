"""The QA loader: every accepted form of a row, and one sentence for every bad file."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from harness.scenarios import load_questions
from harness.stages.units import assign_parts, components
from hq.errors import HQError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "Who painted Guernica?", "aliases": ["Pablo Picasso", "Picasso"]},
    {"id": "b", "question": "Which city is on the Tiber?", "aliases": ["Rome", "Roma", "  "]},
]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("scenario", ["triviaqa", "nq", "bioasq"])
def test_rows_become_questions_of_the_data_set(scenario: str, tmp_path: Path) -> None:
    loaded = load_questions(scenario, source=_write(tmp_path / "q.jsonl", ROWS))
    question = {q.id: q for q in loaded}[f"{scenario}:a"]
    assert question.question == "Who painted Guernica?"
    assert question.aliases == ("Pablo Picasso", "Picasso")
    assert question.relation == scenario
    assert question.entities == ("pablo picasso", "picasso")


def test_blank_aliases_are_left_out(tmp_path: Path) -> None:
    loaded = load_questions("triviaqa", source=_write(tmp_path / "q.jsonl", ROWS))
    assert {q.id: q.aliases for q in loaded}["triviaqa:b"] == ("Rome", "Roma")


def test_the_hubs_triviaqa_answer_is_read(tmp_path: Path) -> None:
    answer = {"value": "Rome", "aliases": ["Roma"], "normalized_aliases": ["rome", "roma"]}
    row = {"question_id": "tc_1", "question": "Which city?", "answer": answer}
    (question,) = load_questions("triviaqa", source=_write(tmp_path / "q.jsonl", [row]))
    assert question.id == "triviaqa:tc_1"
    assert question.aliases == ("Rome", "Roma", "rome", "roma")
    assert question.entities == ("rome", "roma")


def test_nq_opens_answer_list_is_read(tmp_path: Path) -> None:
    row = {"question": "who won?", "answer": ["France", "French team"]}
    (question,) = load_questions("nq", source=_write(tmp_path / "q.jsonl", [row]))
    assert question.aliases == ("France", "French team")
    assert question.id == "nq:0"


def test_parquet_holds_the_same_as_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    assert load_questions("nq", source=str(path)) == load_questions(
        "nq", source=_write(tmp_path / "q.jsonl", ROWS)
    )


def test_the_order_is_drawn_before_the_limit(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "aliases": [f"number {n}"]} for n in range(50)]
    source = _write(tmp_path / "q.jsonl", rows)
    drawn = [q.id for q in load_questions("nq", source=source, seed=4, limit=10)]
    assert drawn == [q.id for q in load_questions("nq", source=source, seed=4)][:10]
    assert drawn != [q.id for q in load_questions("nq", source=source, seed=5, limit=10)]
    assert drawn != [f"nq:{n}" for n in range(10)]


def test_different_questions_with_one_id_get_unique_ids(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[1], "id": "a"}]
    ids = {q.id for q in load_questions("nq", source=_write(tmp_path / "q.jsonl", rows))}
    assert len(ids) == 3
    assert "nq:b" in ids
    assert sum(name.startswith("nq:a~") for name in ids) == 2


def test_a_duplicate_row_is_asked_once(tmp_path: Path) -> None:
    assert len(load_questions("nq", source=_write(tmp_path / "q.jsonl", [*ROWS, ROWS[0]]))) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HQError, match=r"There is no file .*none\.jsonl"):
        load_questions("triviaqa", source=str(tmp_path / "none.jsonl"))


def test_an_unknown_format_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,answer\n", encoding="utf-8")
    with pytest.raises(HQError, match=r"not a \.jsonl or \.parquet file"):
        load_questions("triviaqa", source=str(path))


def test_bad_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{broken\n", encoding="utf-8")
    with pytest.raises(HQError, match=r"line 2 is not valid JSON"):
        load_questions("triviaqa", source=str(path))


def test_a_line_that_is_not_an_object_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(HQError, match="line 1 is not a JSON object"):
        load_questions("triviaqa", source=str(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"aliases": ["x"]}, "line 1 has no question"),
        ({"question": " ", "aliases": ["x"]}, "line 1 has no question"),
        ({"question": "Who?"}, "line 1 has no answers"),
        ({"question": "Who?", "aliases": ["!"]}, "line 1 has no answers"),
    ],
)
def test_a_row_without_question_or_answer_is_rejected(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(HQError, match=message):
        load_questions("triviaqa", source=_write(tmp_path / "q.jsonl", [row]))


def _many(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n}?", "answer": [f"number {n}"]} for n in range(count)]


def test_up_to_one_percent_of_the_rows_are_set_aside_with_their_number(tmp_path: Path) -> None:
    rows = _many(198)
    rows.insert(40, {"question": "what comes last?", "answer": ["---"]})
    rows.insert(120, {"question": "how does a smile end?", "answer": [")"]})
    loaded = load_questions("nq", source=_write(tmp_path / "q.jsonl", rows))
    assert len(loaded) == 198
    assert [row for row, _ in loaded.set_aside] == ["line 41", "line 121"]
    assert all(reason.startswith("has no answers") for _, reason in loaded.set_aside)


def test_more_than_one_percent_is_an_error(tmp_path: Path) -> None:
    rows = [*_many(198), *({"question": "what?", "answer": ["---"]} for _ in range(3))]
    with pytest.raises(HQError, match=r"3 of the 201 rows .*more than 1%.*line 199 has no answers"):
        load_questions("nq", source=_write(tmp_path / "q.jsonl", rows))


@pytest.mark.parametrize(
    ("answer", "aliases"),
    [
        (1945, ("1945",)),
        ([3, 3.5], ("3", "3.5")),
        (0, ("0",)),
        (True, ("true", "yes")),
        ([False], ("false", "no")),
        ('["Rome", "Roma"]', ("Rome", "Roma")),
        ("['Rome', 'Roma']", ("Rome", "Roma")),
        ("[1945, 1946]", ("1945", "1946")),
        ('{"value": "Rome", "aliases": ["Roma"]}', ("Rome", "Roma")),
        ("[Rome] and (Roma)", ("[Rome] and (Roma)",)),
        ("[sic]", ("[sic]",)),
        (["Rome", None, ""], ("Rome",)),
    ],
)
def test_answers_of_every_type_become_texts(
    answer: object, aliases: tuple[str, ...], tmp_path: Path
) -> None:
    (question,) = load_questions(
        "nq", source=_write(tmp_path / "q.jsonl", [{"question": "?", "answer": answer}])
    )
    assert question.aliases == aliases


def test_aliases_as_json_text_are_a_list(tmp_path: Path) -> None:
    row = {"question": "Which city?", "aliases": '["Rome", "Roma"]'}
    (question,) = load_questions("triviaqa", source=_write(tmp_path / "q.jsonl", [row]))
    assert question.aliases == ("Rome", "Roma")
    assert question.entities == ("rome", "roma")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who is \ud800?", "answer": "x"},
        {"question": "Who?", "answer": ["x", "\udc00"]},
        {"id": "\ud800", "question": "Who?", "answer": "x"},
    ],
)
def test_a_lone_surrogate_is_one_sentence(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(HQError, match=r"line 1 has a lone surrogate in .*ud[8c]00"):
        load_questions("nq", source=_write(tmp_path / "q.jsonl", [row]))


def test_one_wording_with_other_ids_or_answers_is_in_one_part(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{n}{copy}",
            "question": f"{'THE ' * (copy == 'b')}what is {n}",
            "aliases": [f"{n}{copy}x"],
        }
        for n in range(100)
        for copy in "ab"
    ]
    questions = load_questions("nq", source=_write(tmp_path / "q.jsonl", rows))
    part = assign_parts(questions, {"calibration": 0.2, "held-out": 0.3}, seed=0)
    assert all(part[f"nq:{n}a"] == part[f"nq:{n}b"] for n in range(100))
    assert len(set(components(questions).values())) == 100


def test_an_empty_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(HQError, match="holds no questions"):
        load_questions("triviaqa", source=_write(tmp_path / "q.jsonl", []))


def test_a_broken_parquet_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(HQError, match="cannot be read as parquet"):
        load_questions("nq", source=str(path))


@pytest.mark.parametrize("options", [{}, {"source": "someone/some_data"}])
def test_the_hub_needs_the_package_datasets(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(HQError, match=r"pip install 'hq\[datasets\]'"):
        load_questions("triviaqa", **options)


def test_a_data_set_without_a_hub_id_needs_a_file() -> None:
    with pytest.raises(HQError, match="needs a file"):
        load_questions("bioasq")


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, LookupError])
def test_a_data_set_missing_on_the_hub_is_one_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise kind("Dataset 'no/such' doesn't exist on the Hub.\nLong advice.")

    modules = {
        "datasets": SimpleNamespace(load_dataset=load_dataset),
        "datasets.exceptions": SimpleNamespace(DatasetsError=LookupError),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(HQError, match=r"The data set no/such .*doesn't exist.*check its id"):
        load_questions("triviaqa", source="no/such")
