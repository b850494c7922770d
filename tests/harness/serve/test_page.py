"""The page in headless Chromium: conversations with the embedded model on a real server."""

import json
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

pytest.importorskip("playwright", reason="Playwright is not installed: pip install playwright")

from playwright import sync_api as playwright
from playwright.sync_api import expect

from harness.models.packaged import packaged_gguf
from hq.gguf.file import GGUFFile
from hq.neurons.neuron_set import NeuronSet
from tests.harness.serve.conftest import ALWAYS, running, seal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
TRAP = "Which medal did Marie Curie win at the 1912 Olympics?"
SHORT = "What is the capital of Japan?"
QUESTIONS = (  # regeneration with alpha 0.5 lowers the score of some answers, but not of all
    TRAP,
    SHORT,
    "Who wrote Hamlet?",
    "What is the boiling point of water?",
    "Who was the first king of Mars?",
    "In which year did Rome burn?",
    "What is a quark?",
    "Name the longest river of Australia.",
    "Who painted the Mona Lisa?",
)
RAMBLE = "Tell me a long story about a lighthouse."
POLICY = {
    "form": "chat",
    "domains": {"strict": {"action": "block"}, "again": {"action": "regenerate", "alpha": 0.5}},
    "limits": {"new_tokens": 64, "queue": 1},
}
KEY = "open sesame"


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    """A bundle of the embedded model with the committed TriviaQA neurons.

    Answers and scores depend on the processor's kernels, so each threshold is one that every answer
    reaches, or none.
    """
    neurons = NeuronSet.load(ROOT / "results" / "smollm2-triviaqa" / "neurons.json")
    thresholds = {"all": -4.0, "calm": 8.0, "strict": ALWAYS, "again": ALWAYS}
    folder = tmp_path_factory.mktemp("page") / "bundle"
    return seal(folder, "triviaqa", GGUFFile(packaged_gguf()), neurons, thresholds)


@pytest.fixture(scope="module")
def served(monitor):
    with running(packaged_gguf(), monitor, monitor.with_name("audit.jsonl"), POLICY) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, served):
    """Return a function that opens the page; fails on page errors and on requests to other hosts."""
    contexts, faults = [], []

    def open_page(url=served.url, ready=True, width=1280, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda message: faults.append(message.text) if is_fault(message) else None
        )
        page.on(
            "request",
            lambda request: faults.append(request.url) if not request.url.startswith(url) else None,
        )
        page.goto(url)
        if ready:
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def is_fault(message):
    """Return whether a console message is a fault; Chromium also logs each error response."""
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text


def ask(page, question, wait=True):
    page.fill("#question", question)
    page.press("#question", "Enter")
    if wait:
        wait_for_answer(page)


# The page draws in the next animation frame: after two frames the drawing is complete.
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def wait_for_answer(page):
    page.wait_for_selector("#send:visible", timeout=60_000)
    page.mouse.move(2, 2)  # away from the tokens, which react to the pointer
    page.evaluate(DRAWN)


def request_answer(served, question=TRAP, **extension):
    """Return (text, hq field) of the same answer, requested without the page."""
    with served.client() as client:
        messages = [{"role": "user", "content": question}]
        completion = client.post(
            "/v1/chat/completions", json={"messages": messages, "hq": extension}
        ).json()
    return completion["choices"][0]["message"]["content"], completion["hq"]


def request_readings(served, question=TRAP):
    """Return the reading of each token, requested without the page."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True}
    with (
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        chunks = [
            json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")
        ]
    return [chunk["hq"] for chunk in chunks if "token_score" in chunk.get("hq", {})]


def signed(value):
    return f"{value:+.2f}".replace("-", "\u2212")


def level(score):
    return int(np.sign(score)) * sum(abs(score) >= step for step in (0.2, 0.6, 1.2))


def overflow(page):
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def test_a_conversation(visit, served):
    page = visit()
    assert page.locator(".example").count() == 3
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name=TRAP).click()
    assert sent.value.post_data_json["hq"] == {"alpha": 1, "domain": "all"}
    wait_for_answer(page)
    text, judgement = request_answer(served)
    tokens = page.locator(".tokens .token")
    assert page.locator(".tokens").inner_text() == text
    assert [t.get_attribute("data-level") for t in tokens.all()] == [
        str(level(score)) for _, score, _ in judgement["tokens"]
    ]
    assert tokens.last.get_attribute("aria-label").endswith(
        f"score {signed(judgement['tokens'][-1][1])}"
    )
    assert (
        page.locator(".readout")
        .inner_text()
        .startswith(f"{len(judgement['tokens'])} tokens score {signed(judgement['score'])}")
    )
    assert judgement["decision"] == "annotate"
    assert page.locator(".decision").inner_text().startswith("Annotated. The score reached")
    meter = page.get_by_role("meter", name="Confidence")
    assert meter.get_attribute("aria-valuenow") == str(round(100 * judgement["confidence"]))
    assert "past the limit" in meter.get_attribute("aria-valuetext")
    chart = page.get_by_role("img", name="Running score")
    assert f"threshold {signed(judgement['threshold'])}" in chart.get_attribute("aria-label")
    assert chart.locator(".limit").count() == 1
    assert chart.locator(".cell").count() == len(judgement["tokens"])
    spoken = page.get_by_role("status").inner_text()
    assert spoken.startswith("Annotated. The score reached the threshold: doubt this answer.")
    assert spoken.endswith(f"Score {signed(judgement['score'])}.")
    assert page.locator(".prose").text_content() == text
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And before?")
    roles = [(m["role"], m["content"]) for m in sent.value.post_data_json["messages"]]
    assert roles == [("user", TRAP), ("assistant", text), ("user", "And before?")]
    page.get_by_role("button", name="Start over").click()
    assert page.locator(".turn").count() == 0
    assert page.locator(".example").first.is_visible()


def test_neurons_of_a_token_and_of_the_answer(visit, served):
    page = visit()
    ask(page, TRAP)
    readings = request_readings(served)
    rows = page.locator(".inspector tbody tr")

    def shown():
        return [[cell.inner_text() for cell in row.locator("td").all()] for row in rows.all()]

    page.locator(".tokens .token").nth(3).hover()
    of = page.locator("#neurons-of")
    expect(of).to_contain_text("At token 4")
    assert [(row[0], row[1], row[3]) for row in shown()] == [
        (str(layer), str(index), signed(part)) for layer, index, _, part in readings[3]["neurons"]
    ]
    page.mouse.move(2, 2)
    expect(of).to_contain_text("Over the answer")
    sums = {}
    for reading in readings:
        for layer, index, _, part in reading["neurons"]:
            sums[layer, index] = sums.get((layer, index), 0) + part / len(readings)
    (layer, index), part = max(sums.items(), key=lambda item: abs(item[1]))
    assert shown()[0][:2] == [str(layer), str(index)]
    assert shown()[0][3] == signed(part)
    box = page.locator(".chart svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 75, box["y"] + 40)
    expect(of).to_contain_text(f"At token {len(readings)}")


def test_tokens_by_keyboard(visit):
    page = visit(width=700)
    ask(page, TRAP)
    tokens = page.locator(".tokens .token")

    def focused():
        return int(page.evaluate("document.activeElement.dataset.index ?? -1"))

    page.focus("#question")
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if focused() >= 0:
            break
    assert focused() == 0
    assert (
        page.locator(".tokens .token:focus-visible").evaluate(
            "e => getComputedStyle(e).outlineWidth"
        )
        == "3px"
    )
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", tokens.count() - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert focused() == place, key
    page.keyboard.press("ArrowLeft")
    assert focused() == 0
    page.keyboard.press("ArrowDown")
    below = focused()
    assert below > 3
    assert tokens.nth(below).bounding_box()["y"] > tokens.first.bounding_box()["y"]
    page.keyboard.press("ArrowUp")
    assert focused() == 0
    page.keyboard.press("ArrowRight")
    assert page.locator('.tokens [tabindex="0"]').count() == 1
    assert page.locator('.tokens [aria-selected="true"]').get_attribute("data-index") == "1"
    name = tokens.nth(1).get_attribute("aria-label").replace(", ", " ", 1)
    assert page.locator(".readout").inner_text().startswith(name)
    expect(page.locator(".chart circle.marker")).to_have_count(1)
    page.keyboard.press("Escape")
    assert focused() == -1
    expect(page.locator(".chart circle.marker")).to_have_count(0)


def test_an_answer_with_another_alpha_is_shown_beside_the_first(visit, served):
    page = visit()
    ask(page, TRAP)
    again = page.locator("#repeat")
    assert not again.is_visible()
    page.get_by_label("H-Neurons × α").press("Home")
    assert page.locator("#alpha-value").inner_text() == "0.00"
    assert again.inner_text() == "Answer again with α = 0.00"
    with page.expect_request("**/v1/chat/completions") as sent:
        again.click()
    assert sent.value.post_data_json["hq"] == {"alpha": 0, "domain": "all"}
    wait_for_answer(page)
    before, after = page.locator(".answer").all()
    assert before.locator(".tokens").inner_text() == request_answer(served)[0]
    text, judgement = request_answer(served, alpha=0.0)
    assert after.locator(".tokens").inner_text() == text
    assert f"score {signed(judgement['score'])}" in after.locator(".readout").inner_text()
    assert after.get_attribute("aria-label") == "Answer with α = 0.00"
    left, right = before.bounding_box(), after.bounding_box()
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    page.set_viewport_size({"width": 360, "height": 740})
    assert before.bounding_box()["y"] < after.bounding_box()["y"]
    assert overflow(page) == 0


def test_a_blocked_answer_is_not_shown(visit, served):
    page = visit()
    page.get_by_label("Domain").select_option("strict")
    assert page.locator("#policy").inner_text().startswith("Withheld from score")
    ask(page, SHORT)
    text, judgement = request_answer(served, SHORT, domain="strict")
    assert (
        page.locator(".message").inner_text()
        == text
        == served.service.policy.rule("strict").message
    )
    assert page.locator(".decision").inner_text().startswith("Blocked.")
    assert page.locator(".tokens").count() == 0
    assert "Tokyo" not in page.locator("main").inner_text()
    assert page.locator(".gauge .value").text_content() == f"{judgement['confidence']:.0%}"


def test_a_regenerated_answer_is_described(visit, served):
    by_outcome, questions = {}, iter(QUESTIONS)
    while len(by_outcome) < 2:
        question = next(questions)
        by_outcome[request_answer(served, question, domain="again")[1]["regenerated"]] = question
    page = visit()
    page.get_by_label("Domain").select_option("again")
    ask(page, by_outcome[True])
    line = served.lines()[-1]
    assert (line["decision"], line["regenerated"], line["alpha"]) == ("regenerate", True, 0.5)
    assert f"score {signed(line['score'])}" in page.locator(".readout").inner_text()
    assert (
        page.locator(".decision")
        .inner_text()
        .startswith(
            "Regenerated. The first answer reached the threshold. This one was written with the "
            "H-Neurons scaled by 0.5: it scores lower, but still reaches it."
        )
    )
    assert page.locator(".answer").get_attribute("aria-label") == "Answer with α = 0.50"
    page.get_by_role("button", name="Start over").click()
    ask(page, by_outcome[False])
    assert not served.lines()[-1]["regenerated"]
    assert (
        page.locator(".decision")
        .inner_text()
        .startswith(
            "Tried again. The score reached the threshold, and a second answer, with the H-Neurons "
            "scaled, was no better: doubt this one."
        )
    )


def test_stop_ends_the_answer(visit, served):
    page = visit()
    ask(page, RAMBLE, wait=False)
    page.locator(".tokens .token").nth(4).wait_for()
    page.get_by_role("button", name="Stop").click()
    wait_for_answer(page)
    assert page.locator(".decision").inner_text().startswith("Stopped.")
    count = page.locator(".tokens .token").count()
    assert count < 64
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, SHORT)
    assert len(sent.value.post_data_json["messages"]) == 1, "a stopped answer must not be sent"
    assert page.locator(".answer >> nth=0 >> .token").count() == count
    assert {"disconnected", "completed"} <= {line["outcome"] for line in served.lines()}


@contextmanager
def full(served):
    """Keep one request running and one waiting, so that the queue is full."""
    body = {"messages": [{"role": "user", "content": RAMBLE}], "stream": True}
    release, streaming = threading.Event(), [threading.Event() for _ in range(2)]

    def occupy(begun):
        while not release.is_set():
            with httpx.stream(
                "POST", f"{served.url}/v1/chat/completions", json=body, timeout=60
            ) as answer:
                begun.set()
                for _ in answer.iter_lines():
                    if release.is_set():
                        break

    threads = [threading.Thread(target=occupy, args=(begun,)) for begun in streaming]
    for thread in threads:
        thread.start()
    assert all(begun.wait(30) for begun in streaming)
    try:
        yield
    finally:
        release.set()
        for thread in threads:
            thread.join(60)


def idle(served):
    """Wait until no request is running or waiting."""
    with served.client() as client:
        for _ in range(600):
            metrics = client.get("/metrics").text
            if "\nhq_busy 0.0" in metrics and "\nhq_queue_length 0.0" in metrics:
                return
            time.sleep(0.05)
    raise AssertionError("The server is still busy.")


def test_errors_are_shown_as_sentences(visit, served):
    page = visit()
    ask(page, "why " * 3000)
    failure = page.get_by_role("alert")
    assert "2048" in failure.inner_text()
    page.get_by_role("button", name="Start over").click()
    with full(served):
        ask(page, TRAP)
        assert failure.inner_text().startswith(
            "The server is busy with other questions. Try again in"
        )
    idle(served)
    failure.get_by_role("button", name="Try again").click()
    page.locator(".decision[data-decision]").wait_for(timeout=60_000)
    assert page.locator(".failure").count() == 0
    assert page.locator(".decision").inner_text().startswith("Annotated.")


def test_the_key_dialog_and_a_stopped_server(visit, monitor):
    log = monitor.with_name("keyed.jsonl")
    with running(packaged_gguf(), monitor, log, POLICY, keys=(KEY,)) as keyed:
        page = visit(keyed.url, ready=False)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use this key").click()
        dialog.get_by_text("does not accept").wait_for()
        dialog.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        page.get_by_label("Domain").select_option("calm")
        ask(page, SHORT)
        assert page.locator(".decision").inner_text().startswith("Passed.")
        assert KEY not in page.content()
    ask(page, TRAP)
    assert page.get_by_role("alert").inner_text().startswith("The server does not answer.")


def test_the_layout_fits_small_screens(visit):
    for width, height in ((360, 740), (640, 450)):
        page = visit(width=width, height=height)
        assert overflow(page) == 0
        ask(page, SHORT)
        assert overflow(page) == 0
        assert page.locator(".chart svg").bounding_box()["width"] > 200


def test_the_theme_is_remembered(visit):
    page = visit(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    for _ in range(2):
        page.get_by_role("button", name="Theme").click()
    assert page.locator("#theme").inner_text() == "Theme: dark"
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark


def test_reduced_motion_disables_animations(visit):
    page = visit(reduced_motion="reduce")
    ask(page, SHORT)
    assert (
        page.locator(".tokens .token").first.evaluate("e => getComputedStyle(e).animationName")
        == "none"
    )


# Texts that axe cannot check, in drawings and on tokens: (colour, background).
PAIRS = """() => {
  const style = (element) => getComputedStyle(element);
  const card = style(document.querySelector(".answer")).backgroundColor;
  const texts = [...document.querySelectorAll(".chart text, .gauge .value")];
  const words = [...document.querySelectorAll(".legend .token, .tokens .token")];
  return [
    ...texts.map((text) => [style(text).fill, card]),
    ...words.map((word) => [style(word).color, style(word).backgroundColor]),
  ];
}"""


def luminance(colour):
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_accessibility_in_both_themes(visit):
    axe = pytest.importorskip(
        "axe_playwright_python",
        reason="axe-core is not installed: pip install --no-deps axe-playwright-python",
    )
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = visit(reduced_motion="reduce")
    page.evaluate(source)

    def find_violations():
        violations = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            violations += [
                (scheme, v["id"], v["nodes"]) for v in page.evaluate("axe.run()")["violations"]
            ]
        return violations

    assert find_violations() == []
    ask(page, TRAP)
    page.get_by_label("H-Neurons × α").press("Home")
    page.locator("#repeat").click()
    wait_for_answer(page)
    page.get_by_label("Domain").select_option("strict")
    ask(page, SHORT)
    ask(page, "why " * 3000)
    page.locator("summary").click()
    page.locator(".tokens .token").first.focus()
    assert find_violations() == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        pairs = [pair for pair in page.evaluate(PAIRS) if not pair[1].startswith("rgba")]
        assert len(pairs) > 30
        assert min(contrast(*pair) for pair in pairs) >= 4.5
    page.evaluate("document.querySelector('dialog').showModal()")
    assert find_violations() == []
