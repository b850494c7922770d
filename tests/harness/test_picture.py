"""The picture of a run: every series of the tables has a name, a shape and its points."""

import re
from collections import Counter

import pytest

from harness.report.charts.detection import CONTROLS as NAMES
from harness.report.charts.detection import OF_PRECISION, OF_SAMPLES
from harness.report.picture import draw
from hq.probe.text import TEXT_CONTROLS
from tests.detect_runs import CONTROLS, PRECISIONS, write_run

pytest.importorskip("altair")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The text of an SVG file."""
    folder = tmp_path_factory.mktemp("picture")
    write_run(folder / "run")
    draw(folder / "run", folder / "auroc.svg")
    return (folder / "auroc.svg").read_text(encoding="utf-8")


def symbols(picture):
    """The places and colours of all points; a point is a path with a colour to fill it."""
    return re.findall(r'<path transform="translate\(([\d.,-]+)\)" d="[^"]+" fill="(#\w+)"', picture)


def test_every_control_is_drawn_with_a_look_of_its_own(picture):
    assert set(NAMES) == set(CONTROLS) >= set(TEXT_CONTROLS)
    drawn = [name for name in OF_PRECISION if name in NAMES.values()] + list(OF_SAMPLES)
    assert sorted(NAMES.values()) == sorted(drawn)
    assert len(set(OF_PRECISION.values())) == len(OF_PRECISION)
    for name in {*OF_PRECISION, *OF_SAMPLES} - {"further checkpoints"}:
        assert f">{name}</text>" in picture
    for name in (*PRECISIONS, "all precisions"):
        assert f">{name}</text>" in picture


@pytest.mark.parametrize(("missing", "points"), [("nf4,matched", 1), ("nf4,text-spelling", 0)])
def test_a_control_is_a_point_per_precision_or_one_for_all(picture, tmp_path, missing, points):
    write_run(tmp_path / "run")
    table = tmp_path / "run" / "controls.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if missing not in line]
    assert len(kept) == len(lines) - 1
    table.write_text("\n".join(kept) + "\n", encoding="utf-8")
    draw(tmp_path / "run", tmp_path / "auroc.svg")
    other = (tmp_path / "auroc.svg").read_text(encoding="utf-8")
    # Four precisions with probe, re-identified neurons and three controls, and six for all.
    assert len(symbols(picture)) == 4 * 5 + len(OF_SAMPLES) + 5  # and five in the legend
    assert len(symbols(picture)) - len(symbols(other)) == points


def test_further_makings_are_points_on_the_line_of_the_first(picture, tmp_path):
    assert "further checkpoints" not in picture
    makings = [("nf4", making, 0.8 + making / 100) for making in range(4)]
    write_run(tmp_path / "run", makings=makings)
    draw(tmp_path / "run", tmp_path / "auroc.svg")
    with_makings = (tmp_path / "auroc.svg").read_text(encoding="utf-8")
    assert ">further checkpoints</text>" in with_makings
    assert len(symbols(with_makings)) - len(symbols(picture)) == 3 + 1  # and one in the legend
    blue = [place for place, colour in symbols(with_makings) if colour == "#0072B2"]
    heights = Counter(place.split(",")[1] for place in blue)
    assert heights.most_common(1)[0][1] == 1 + 3


def test_a_drawing_is_the_same_each_time(picture, tmp_path):
    write_run(tmp_path / "run")
    draw(tmp_path / "run", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == picture


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_suffix_is_the_format(tmp_path, suffix, start):
    write_run(tmp_path / "run", precisions=("fp16",))
    draw(tmp_path / "run", tmp_path / f"auroc{suffix}")
    assert (tmp_path / f"auroc{suffix}").read_bytes().startswith(start)


def test_the_axis_names_samples_units_and_how_they_were_scored(picture):
    label = re.search(r">(AUROC[^<]*)</text>", picture)
    assert label is not None
    assert label[1] == "AUROC out of fold, 7 samples in 7 units, 95% intervals (*: of the draws)"


def test_distributions_are_drawn_by_precision(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    tables = {
        "density": "precision,layer,per_mille,expected_low,expected_high\n"
        "fp16,0,0,0,2\nfp16,1,3.5,0,2\nnf4,0,1,0,2\nnf4,1,0,0,2\n",
        "quantiles": "precision,neurons,label,q05,q25,q50,q75,q95\n"
        + "".join(
            f"{p},{neurons},{label},0.1,0.4,{0.7 + 0.2 * (label == 'hallucinated')},1.2,2\n"
            for p in ("fp16", "nf4")
            for neurons in ("h", "matched", "random")
            for label in ("right", "hallucinated")
        ),
        "effects": "precision,layer,index,delta,delta_low,delta_high,matched_low,matched_high\n"
        "fp16,1,17,0.2,0.1,0.3,-0.1,0.1\nfp16,1,42,0.3,0.2,0.4,-0.1,0.1\n"
        "nf4,1,17,0.2,0.1,0.3,-0.1,0.1\n",
        "sets": "precision,neurons,n,units\nfp16,h,240,120\nnf4,h,240,120\n",
    }
    for name, text in tables.items():
        (run / f"{name}.csv").write_text(text, encoding="utf-8")
    draw(run, tmp_path / "distributions.svg")
    picture = (tmp_path / "distributions.svg").read_text(encoding="utf-8")
    for name in ("fp16, ‰", "nf4, ‰", "H-Neurons", "matched", "240 samples in 120 units"):
        assert f">{name}</text>" in picture
    assert picture.index(">1:42</text>") < picture.index(">1:17</text>")  # largest delta first
