"""The picture of a run: every series of the tables has a name, a shape and its points."""

import re

import pytest

from harness.tables.picture import _CONTROLS, _STYLES, draw
from hq.probe.text import TEXT_CONTROLS
from tests.detect_runs import CONTROLS, PRECISIONS, write_run


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The text of an SVG file."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("picture")
    write_run(folder / "run")
    draw(folder / "run", folder / "auroc.svg")
    return (folder / "auroc.svg").read_text(encoding="utf-8")


def test_every_control_is_drawn_with_a_shape_of_its_own(picture):
    assert set(_CONTROLS) == set(CONTROLS) >= set(TEXT_CONTROLS)
    assert list(_CONTROLS.values()) == list(_STYLES)[2:]
    assert len({marker for _, marker in _STYLES.values()}) == len(_STYLES)
    for name in (*_STYLES, *PRECISIONS, "all precisions"):
        assert f">{name}</text>" in picture


@pytest.mark.parametrize(("missing", "points"), [("nf4,matched", 1), ("nf4,text-spelling", 0)])
def test_a_control_is_a_point_per_precision_or_one_for_all(picture, tmp_path, missing, points):
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "run")
    table = tmp_path / "run" / "controls.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if missing not in line]
    assert len(kept) == len(lines) - 1
    table.write_text("\n".join(kept) + "\n", encoding="utf-8")
    draw(tmp_path / "run", tmp_path / "auroc.svg")
    other = (tmp_path / "auroc.svg").read_text(encoding="utf-8")
    assert picture.count("<use ") - other.count("<use ") == 3 * points  # with two ends each


def test_further_makings_are_small_points_beside_the_first(picture, tmp_path):
    pytest.importorskip("matplotlib")
    assert "further makings" not in picture
    makings = [("nf4", making, 0.8 + making / 100) for making in range(4)]
    write_run(tmp_path / "run", makings=makings)
    draw(tmp_path / "run", tmp_path / "auroc.svg")
    with_makings = (tmp_path / "auroc.svg").read_text(encoding="utf-8")
    assert ">frozen probe, further makings</text>" in with_makings
    assert with_makings.count("<use ") - picture.count("<use ") == 3 + 1  # and one in the legend


def test_the_axis_names_samples_units_and_how_they_were_scored(picture):
    label = re.search(r">(AUROC[^<]*)</text>", picture)
    assert label is not None
    assert label[1] == "AUROC out of fold, 7 samples in 7 units, 95% intervals (*: of the draws)"
