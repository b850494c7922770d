"use strict";
// The theme follows the system until the button is used; the choice holds for this view only.
{
  const button = document.querySelector("#theme");
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();
  button.hidden = false;
}

// Each sample browser: native controls filter and order the samples that the page holds as JSON.
for (const browser of document.querySelectorAll(".browser")) {
  const PAGE = 50;
  const { head, samples } = JSON.parse(browser.querySelector("script").textContent);
  const form = browser.querySelector("form");
  const body = browser.querySelector("tbody");
  const count = browser.querySelector(".count");
  const more = browser.querySelector(".more");
  const [QUESTION, ANSWER, RELATION, LABEL, THRESHOLD, SCORES, TOKENS, TOKEN_SCORES, FLAGS] =
    Array(9).keys();
  let chosen = [];
  let shown = 0;

  const flagged = (sample, p) => sample[FLAGS][p] === "1";
  const kind = (sample, p) => {
    if (flagged(sample, p) === Boolean(sample[LABEL])) return "correct";
    return sample[LABEL] ? "missed" : "false alarm";
  };
  const signed = (value, digits = 2) =>
    (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
  const level = (distance) =>
    Math.sign(distance) * [0.2, 0.6, 1.2].filter((step) => Math.abs(distance) >= step).length;
  const cell = (name, text, className) => {
    const element = document.createElement(name);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  const answer = (sample, p) => {
    const element = cell("td", "", "answered");
    const scores = sample[TOKEN_SCORES][p];
    if (!scores) {
      element.textContent = sample[ANSWER];
      return element;
    }
    sample[TOKENS].forEach((token, i) => {
      const span = cell("span", token, "token");
      span.dataset.level = level(scores[i] - sample[THRESHOLD]);
      span.title = `score ${signed(scores[i])}`;
      element.append(span);
    });
    return element;
  };

  const row = (sample) => {
    const p = Number(form.elements.precision.value);
    const line = document.createElement("tr");
    const question = cell("th", sample[QUESTION]);
    question.scope = "row";
    question.append(cell("span", sample[RELATION], "relation"));
    const score = cell("td", signed(sample[SCORES][p]), "right");
    score.title = `threshold ${signed(sample[THRESHOLD])}`;
    if (p) {
      score.append(cell("span", `${head.precisions[0]} ${signed(sample[SCORES][0])}`, "relation"));
    }
    const decided = cell("td", kind(sample, p), "kind");
    decided.dataset.kind = decided.textContent;
    line.append(
      question, answer(sample, p), cell("td", sample[LABEL] ? "hallucinated" : "right"), score, decided
    );
    return line;
  };

  const extend = () => {
    const next = chosen.slice(shown, shown + PAGE);
    body.append(...next.map(row));
    shown += next.length;
    more.hidden = shown >= chosen.length;
    const held = samples.length < head.total
      ? ` (the page holds the first ${samples.length.toLocaleString("en")})` : "";
    const precision = head.precisions[Number(form.elements.precision.value)];
    count.textContent =
      `${chosen.length.toLocaleString("en")} of ${head.total.toLocaleString("en")} samples${held} `
      + `at ${precision}; ${shown.toLocaleString("en")} shown.`;
  };

  const filter = () => {
    const p = Number(form.elements.precision.value);
    const wanted = form.elements.kind.value;
    const words = form.elements.text.value.trim().toLowerCase();
    chosen = samples.filter((sample) => {
      const is = wanted === "changed" ? flagged(sample, p) !== flagged(sample, 0)
        : !wanted || kind(sample, p) === wanted;
      return is && (!words || [QUESTION, ANSWER, RELATION].some(
        (field) => sample[field].toLowerCase().includes(words)
      ));
    });
    const distance = (sample) => sample[SCORES][p] - sample[THRESHOLD];
    const moved = (sample) => Math.abs(sample[SCORES][p] - sample[SCORES][0]);
    const keys = { high: (s) => -distance(s), low: distance, moved: (s) => -moved(s) };
    const key = keys[form.elements.order.value];
    if (key) chosen.sort((a, b) => key(a) - key(b));
    body.replaceChildren();
    shown = 0;
    extend();
  };

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const first = shown;
    extend();
    const header = body.rows[first]?.cells[0];
    if (header) { header.tabIndex = -1; header.focus(); }
  });
  form.hidden = false;
  filter();
}
document.body.dataset.ready = "";
