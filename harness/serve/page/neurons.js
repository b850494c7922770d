// The neurons behind a token, or behind an answer: what each adds to the score.

import { draw, make } from "./dom.js";
import { fine, signed } from "./score.js";

const SHOWN = 8;

/** A token's own neurons: [layer, index, cett, contribution] each, strongest first. */
export const ofToken = (token) => token.neurons;

/**
 * Means over an answer's tokens, strongest first. A token names its strongest neurons only, so what
 * the others add there is missing here.
 */
export function ofAnswer(tokens) {
  const sums = new Map();
  for (const token of tokens) {
    for (const [layer, index, cett, contribution] of token.neurons) {
      const key = `${layer}.${index}`;
      const sum = sums.get(key) ?? [layer, index, 0, 0, 0];
      sums.set(key, [layer, index, sum[2] + cett, sum[3] + contribution, sum[4] + 1]);
    }
  }
  return [...sums.values()]
    .map(([layer, index, cett, contribution, seen]) => [layer, index, cett / seen, contribution / tokens.length])
    .sort((one, other) => Math.abs(other[3]) - Math.abs(one[3]))
    .slice(0, SHOWN);
}

/** Bars on either side of zero; `widest` is the contribution that fills a side. */
export function table(neurons, caption) {
  const widest = Math.max(...neurons.map((neuron) => Math.abs(neuron[3])), 1e-9);
  return make(
    "table",
    {},
    make("caption", { class: "hidden" }, caption),
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        make("th", { scope: "col" }, "Layer"),
        make("th", { scope: "col" }, "Index"),
        make("th", { scope: "col", colspan: 2 }, "Contribution"),
        make("th", { scope: "col" }, "Share"),
      ),
    ),
    make("tbody", {}, ...neurons.map((neuron) => row(neuron, widest))),
  );
}

function row([layer, index, cett, contribution], widest) {
  const length = (Math.abs(contribution) / widest) * 30;
  return make(
    "tr",
    {},
    make("td", {}, String(layer)),
    make("td", {}, String(index)),
    make(
      "td",
      { class: "lever", "aria-hidden": "true" },
      draw(
        "svg",
        { viewBox: "0 0 64 12", width: 64, height: 12 },
        draw("line", { x1: 32, x2: 32, y1: 0, y2: 12 }),
        draw("rect", {
          class: contribution > 0 ? "invents" : "knows",
          x: contribution > 0 ? 32 : 32 - length,
          y: 2,
          width: length,
          height: 8,
        }),
      ),
    ),
    make("td", {}, signed(contribution)),
    make("td", {}, fine(cett)),
  );
}
