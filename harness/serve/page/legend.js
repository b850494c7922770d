// What the shading of tokens means: a step of colour a swatch, and the scores between steps.

import { make } from "./dom.js";
import { STEPS, signed } from "./score.js";

export function legend(element) {
  const bounds = [...STEPS.map((step) => -step).reverse(), ...STEPS].map((bound) => signed(bound, 1));
  const [below, above] = [bounds[STEPS.length - 1], bounds[STEPS.length]];
  const levels = bounds.map((_, place) => place - STEPS.length).concat(STEPS.length);
  const swatches = levels.map((level) =>
    make("span", { class: "token", "data-level": level }, level === 0 ? "even" : "word"),
  );
  element.setAttribute(
    "aria-label",
    `Shading by score, the log odds of a hallucination: blue below ${below}, orange and underlined ` +
      `above ${above}, in steps at ${bounds.join(", ")}.`,
  );
  element.append(
    make("span", { class: "knows" }, "knows"),
    make("span", { class: "swatches" }, ...swatches),
    make("span", { class: "invents" }, "makes up"),
    make("span", { class: "unit" }, "score"),
    make("span", { class: "marks" }, ...bounds.map((bound) => make("span", {}, bound))),
  );
}
