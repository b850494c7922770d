// The running score over an answer's tokens, against the domain's threshold.

import { draw, make } from "./dom.js";
import { level, signed } from "./score.js";

const HEIGHT = 136;
const MARGIN = { left: 36, right: 70, top: 10, bottom: 34 };
const STRIP = { top: HEIGHT - 28, height: 9 }; // of the tokens' own scores
const FEWEST = 16; // tokens that the width holds at least, so that a first one is no wall
let charts = 0;

export class Chart {
  /** `onPoint(index or null)` is called as the pointer moves over it. */
  constructor(threshold, onPoint) {
    this.threshold = threshold;
    this.tokens = []; // {token_score, score}
    this.active = null;
    this.ended = false;
    this.id = `chart-${charts++}`;
    this.svg = draw("svg", { role: "img", height: HEIGHT, "aria-label": "No tokens yet" });
    this.element = make("div", { class: "chart" }, this.svg);
    this.width = 0;
    this.due = false;
    new ResizeObserver(([entry]) => {
      this.width = entry.contentRect.width;
      this.render();
    }).observe(this.element);
    this.svg.addEventListener("pointermove", (event) => onPoint(this.nearest(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => onPoint(null));
  }

  /** Draws once a frame, however fast tokens come. */
  refresh() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.render();
    });
  }

  add(token) {
    this.tokens.push(token);
    this.refresh();
  }

  end(threshold) {
    this.threshold = threshold;
    this.ended = true;
    this.refresh();
  }

  point(index) {
    this.active = index;
    this.refresh();
  }

  /** Index of the token at a distance from the left edge; null where there is none. */
  nearest(offset) {
    if (!this.tokens.length) return null;
    const index = Math.floor(((offset - MARGIN.left) / this.inner) * this.places);
    return Math.min(Math.max(index, 0), this.tokens.length - 1);
  }

  /** Pixels that the tokens share. */
  get inner() {
    return this.width - MARGIN.left - MARGIN.right;
  }

  /** How many tokens they are shared by. */
  get places() {
    return this.ended ? this.tokens.length : Math.max(this.tokens.length, FEWEST);
  }

  render() {
    if (!this.width) return;
    const scale = this.scales();
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("aria-label", this.label());
    this.svg.replaceChildren(
      ...this.axis(scale),
      ...this.areas(scale),
      ...this.strip(scale),
      ...this.limit(scale),
      ...this.marker(scale),
    );
  }

  scales() {
    const values = this.tokens.map((token) => token.score);
    const low = Math.min(0, this.threshold, ...values) - 0.2;
    const high = Math.max(0, this.threshold, ...values) + 0.2;
    const height = HEIGHT - MARGIN.top - MARGIN.bottom;
    return {
      low,
      high,
      x: (index) => MARGIN.left + ((index + 0.5) / this.places) * this.inner,
      y: (value) => MARGIN.top + ((high - value) / (high - low)) * height,
    };
  }

  axis({ low, high, y }) {
    const step = [0.2, 0.5, 1, 2, 5, 10, 20, 50].find((size) => (high - low) / size <= 5) ?? 100;
    const count = Math.floor(high / step) - Math.ceil(low / step) + 1;
    const ticks = Array.from({ length: count }, (_, index) => (Math.ceil(low / step) + index) * step);
    const right = this.width - MARGIN.right;
    return [
      ...ticks.flatMap((value) => [
        draw("line", { class: value === 0 ? "even" : "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
        draw(
          "text",
          { x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end" },
          value === 0 ? "0" : signed(value, step < 1 ? 1 : 0),
        ),
      ]),
      draw("text", { x: MARGIN.left, y: HEIGHT - 4 }, "token 1"),
      draw("text", { x: right, y: HEIGHT - 4, "text-anchor": "end" }, this.ended && this.tokens.length > 1 ? `${this.tokens.length}` : ""),
    ];
  }

  /** The line, and the area between it and the threshold in the colour of its side. */
  areas({ x, y }) {
    if (!this.tokens.length) return [];
    const at = y(this.threshold);
    const points = this.tokens.map((token, index) => `${x(index)} ${y(token.score)}`);
    const area = `M${x(0)} ${at}L${points.join("L")}L${x(this.tokens.length - 1)} ${at}Z`;
    const clip = (name, top, height) =>
      draw("clipPath", { id: `${this.id}-${name}` }, draw("rect", { x: 0, y: top, width: this.width, height }));
    return [
      clip("above", 0, Math.max(at, 0)),
      clip("below", at, Math.max(HEIGHT - at, 0)),
      draw("path", { class: "above", d: area, "clip-path": `url(#${this.id}-above)` }),
      draw("path", { class: "below", d: area, "clip-path": `url(#${this.id}-below)` }),
      draw("path", { class: "running", d: `M${points.join("L")}` }),
      draw("circle", { class: "end", cx: x(this.tokens.length - 1), cy: y(this.tokens.at(-1).score), r: 3 }),
    ];
  }

  /** The tokens' own scores, in the colours of the text. */
  strip({ x }) {
    const width = this.inner / this.places;
    return this.tokens.map((token, index) =>
      draw("rect", {
        class: "cell",
        "data-level": level(token.token_score),
        x: x(index) - width / 2,
        y: STRIP.top,
        width,
        height: STRIP.height,
      }),
    );
  }

  limit({ y }) {
    const [at, right] = [y(this.threshold), this.width - MARGIN.right];
    const label = (text, below) =>
      draw("text", { class: "limit-label", x: right + 6, y: at + below }, text);
    return [
      draw("line", { class: "limit", x1: MARGIN.left, x2: right, y1: at, y2: at }),
      label("threshold", -2),
      label(signed(this.threshold), 11),
    ];
  }

  marker({ x, y }) {
    const token = this.active == null ? undefined : this.tokens[this.active];
    if (!token) return [];
    const at = x(this.active);
    return [
      draw("line", { class: "marker", x1: at, x2: at, y1: MARGIN.top, y2: STRIP.top + STRIP.height }),
      draw("circle", { class: "marker", cx: at, cy: y(token.score), r: 4 }),
    ];
  }

  label() {
    const last = this.tokens.at(-1);
    if (!last) return "No tokens yet";
    const past = this.tokens.filter((token) => token.score >= this.threshold).length;
    return (
      `Running score over ${this.tokens.length} tokens, ending at ${signed(last.score)}; ` +
      `threshold ${signed(this.threshold)}, reached at ${past} of them.`
    );
  }
}
