// Confidence as an arc, with a tick where the domain's threshold lies.

import { draw, make } from "./dom.js";
import { confidence, percent } from "./score.js";

const [CENTRE, BASE, RADIUS] = [50, 50, 40];

export class Gauge {
  constructor(threshold) {
    this.fill = draw("path", { class: "fill", d: arc(RADIUS), pathLength: 100, "stroke-dasharray": "0 200" });
    this.tick = draw("path", { class: "tick" });
    this.value = draw("text", { class: "value", x: CENTRE, y: BASE - 3 }, "–");
    this.caption = make("span");
    this.meter = make(
      "div",
      { role: "meter", "aria-label": "Confidence", "aria-valuemin": 0, "aria-valuemax": 100 },
      draw(
        "svg",
        { viewBox: "0 0 100 56", "aria-hidden": "true" },
        draw("path", { class: "track", d: arc(RADIUS) }),
        this.fill,
        this.tick,
        this.value,
      ),
    );
    this.element = make("div", { class: "gauge" }, this.meter, make("p", {}, "confidence", this.caption));
    this.limit(threshold);
    this.meter.setAttribute("aria-valuenow", 0);
    this.meter.setAttribute("aria-valuetext", "not measured yet");
  }

  limit(threshold) {
    this.threshold = threshold;
    const at = Math.PI * (1 - confidence(threshold));
    const point = (radius) => `${CENTRE + radius * Math.cos(at)} ${BASE - radius * Math.sin(at)}`;
    this.tick.setAttribute("d", `M${point(RADIUS - 8)}L${point(RADIUS + 8)}`);
    this.caption.textContent = `limit ${percent(confidence(threshold))}`;
  }

  show(score) {
    const share = confidence(score);
    const past = score >= this.threshold;
    this.fill.setAttribute("stroke-dasharray", `${share * 100} 200`);
    this.element.toggleAttribute("data-past", past);
    this.value.textContent = percent(share);
    this.meter.setAttribute("aria-valuenow", Math.round(share * 100));
    const side = past ? "past" : "within";
    this.meter.setAttribute("aria-valuetext", `${percent(share)}, ${side} the limit`);
  }
}

const arc = (radius) =>
  `M${CENTRE - radius} ${BASE}A${radius} ${radius} 0 0 1 ${CENTRE + radius} ${BASE}`;
