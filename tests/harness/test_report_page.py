"""The report in headless Chromium: opening, filters, themes, phones, print and accessibility."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("altair")
pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")

from playwright import sync_api as playwright

from harness.report.build import write_report
from harness.report.run import RunFolder
from tests.harness.test_report import HOSTILE, add_tokens, read_lines

pytestmark = pytest.mark.slow

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A finished run with a hostile question, and a report with its tokens."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(finished / "runs" / "tiny", folder / "tiny")
    lines = read_lines(folder / "tiny" / "samples.jsonl")
    lines[0]["question"] = HOSTILE
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "tiny" / "samples.jsonl").write_text(text, encoding="utf-8")
    tokens = add_tokens(folder / "tiny", folder / "tokens")
    write_report([folder / "tiny", tokens], folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, run):
    """Opens the report; fails on page errors, console messages and requests to any address."""
    contexts, faults = [], []

    def open_page(width=1280, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        address = (run / "report.html").as_uri()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on(
            "request",
            lambda request: None if request.url == address else faults.append(request.url),
        )
        page.goto(address)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def kinds(run, precision):
    """The kind of each decision, by the files of the run."""
    rows = RunFolder(run / "tiny").scores.filter(precision=precision).iter_rows(named=True)
    names = {(True, False): "missed", (False, True): "false alarm"}
    return [
        names.get((row["hallucinated"], row["score"] >= row["threshold"]), "correct")
        for row in rows
    ]


def test_filters_show_the_decisions_of_the_files(visit, run):
    page = visit()
    browser = page.locator(".browser")
    total = len(RunFolder(run / "tiny").samples)
    for precision in ("fp16", "nf4"):
        browser.get_by_label("Precision", exact=True).select_option(label=precision)
        for kind in ("missed", "false alarm", "correct"):
            browser.get_by_label("Decision").select_option(kind)
            count = kinds(run, precision).count(kind)
            said = browser.get_by_role("status").text_content()
            assert said.startswith(f"{count} of {total} samples at {precision}; ")
            shown = browser.locator("tbody td.kind").all_text_contents()
            assert shown == [kind] * min(count, 50)
            first = browser.locator("tbody td.right .relation").first
            assert precision == "fp16" or not count or first.text_content().startswith("fp16 ")
    browser.get_by_label("Decision").select_option("changed")
    changed = sum(a != b for a, b in zip(kinds(run, "fp16"), kinds(run, "nf4"), strict=True))
    assert browser.get_by_role("status").text_content().startswith(f"{changed} of {total} ")
    browser.get_by_label("Decision").select_option("")
    browser.get_by_label("Text").fill('<SCRIPT>ALERT("X")')
    assert browser.locator("tbody tr").count() == 1
    assert 'Is <script>alert("x")</script> & <b' in browser.locator("tbody th").text_content()


def test_order_and_the_next_fifty(visit, run):
    page = visit()
    browser = page.locator(".browser")
    total = len(RunFolder(run / "tiny").samples)
    browser.get_by_label("Order").select_option("high")
    scores = [
        float(text.replace("\u2212", "-"))
        for text in browser.locator("tbody td.right").all_text_contents()
    ]
    assert len(scores) == min(50, total)
    assert scores[0] == max(scores)
    if total > 50:
        browser.get_by_role("button", name="Show 50 more").click()
        assert browser.locator("tbody tr").count() == min(100, total)
        assert page.evaluate("document.activeElement.tagName") == "TH"


def test_tokens_are_shaded_by_their_distance_from_the_threshold(visit, run):
    page = visit()
    row = page.locator(".browser tbody tr").first
    scores = RunFolder(run / "tiny").scores.filter(precision="fp16").row(0, named=True)
    distance = scores["score"] - scores["threshold"]
    level = sum(abs(distance) >= step for step in (0.2, 0.6, 1.2)) * (1 if distance > 0 else -1)
    levels = {token.get_attribute("data-level") for token in row.locator(".token").all()}
    assert {int(level) for level in levels} == {level}


def test_without_javascript_the_first_fifty_are_a_table(visit, run):
    page = visit(java_script_enabled=False)
    rows = page.locator(".browser tbody tr")
    assert rows.count() == min(50, len(RunFolder(run / "tiny").samples))
    assert not page.locator(".filters").is_visible()
    assert not page.locator("#theme").is_visible()


def test_a_phone_does_not_scroll_sideways(visit):
    page = visit(width=390)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate(wide) == 0


def test_keyboard_and_theme(visit):
    page = visit(color_scheme="light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(colour) != before
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(colour) == before
    # Texts of drawings follow the theme.
    text = "getComputedStyle(document.querySelector('.drawing text')).fill"
    light = page.evaluate(text)
    page.emulate_media(color_scheme="dark")
    page.evaluate("delete document.documentElement.dataset.theme")
    assert page.evaluate(text) != light


def test_print_leaves_controls_out(visit):
    page = visit()
    page.emulate_media(media="print")
    for hidden in (".top", ".contents", ".filters"):
        assert not page.locator(hidden).first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_accessibility_in_both_themes(visit):
    axe = pytest.importorskip(
        "axe_playwright_python",
        reason="axe-core is not installed: pip install --no-deps axe-playwright-python",
    )
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for width in (1280, 390):
        page = visit(width=width, reduced_motion="reduce", bypass_csp=True)
        page.evaluate(source)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            violations = page.evaluate("axe.run()")["violations"]
            found = [(v["id"], v["impact"], v["nodes"][0]["html"]) for v in violations]
            assert found == [], (width, scheme)
