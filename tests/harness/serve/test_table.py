"""The page on the server's interface says what the request models do."""

from pathlib import Path

from harness.serve.api.table import tables, written
from harness.serve.api.treatment import Hint, Number, Only
from harness.serve.requests import ChatRequest, TextRequest

PAGE = Path(__file__).parents[3] / "docs" / "server.md"


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run python -m harness.serve.api.table docs/server.md"
    assert all(table in page for table in tables().values())


def test_every_field_is_in_one_table_and_says_what_it_does():
    made = tables()
    for model in (ChatRequest, TextRequest):
        for name, field in model.model_fields.items():
            kinds = [each for each in field.metadata if isinstance(each, (Hint, Number, Only))]
            assert len(kinds) <= 1
            assert f"`{name}`" in "".join(made[t] for t in ("supported", "neutral", "ignored"))
            if not kinds:
                assert field.description, name
            elif isinstance(kinds[0], (Number, Only)):
                assert kinds[0].says, name
    assert "|  |" not in made["supported"]
