"""The tables in docs/server.md are those of the request models."""

from pathlib import Path

from harness.serve.api.field_tables import field_tables, update_page
from harness.serve.api.fields import IgnoredHint, NeutralOnly, Number
from harness.serve.api.requests import ChatRequest, TextRequest

PAGE = Path(__file__).parents[3] / "docs" / "server.md"


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == update_page(page), "run python -m harness.serve.api.field_tables docs/server.md"
    assert all(table in page for table in field_tables().values())


def test_every_field_is_in_one_table_with_a_description():
    sections = field_tables()
    for model in (ChatRequest, TextRequest):
        for name, field in model.model_fields.items():
            kinds = [
                each
                for each in field.metadata
                if isinstance(each, (IgnoredHint, Number, NeutralOnly))
            ]
            assert len(kinds) <= 1
            assert f"`{name}`" in "".join(sections[t] for t in ("supported", "neutral", "ignored"))
            if not kinds:
                assert field.description, name
            elif isinstance(kinds[0], (Number, NeutralOnly)):
                assert (
                    kinds[0].message if isinstance(kinds[0], NeutralOnly) else kinds[0].description
                ), name
    assert "|  |" not in sections["supported"]
