// One answer: its tokens, the threshold line over it, its confidence, and what was decided.

import { Chart } from "./chart.js";
import { icon, make } from "./dom.js";
import { Gauge } from "./gauge.js";
import { confidence, percent, signed, spoken } from "./score.js";
import { Tokens } from "./tokens.js";

// What was decided, in a word and a sentence.
const DECISIONS = {
  pass: () => ["Passed", "The score stayed below the threshold of this domain."],
  annotate: () => ["Annotated", "The score reached the threshold: doubt this answer."],
  regenerate: ({ regenerated, alpha, verdict }) => {
    if (!regenerated) {
      return [
        "Tried again",
        "The score reached the threshold, and a second answer, with the H-Neurons scaled, was no better: doubt this one.",
      ];
    }
    const now = verdict === "hallucination" ? "it scores lower, but still reaches it." : "it scores lower.";
    return [
      "Regenerated",
      `The first answer reached the threshold. This one was written with the H-Neurons scaled by ${alpha}: ${now}`,
    ];
  },
  block: () => ["Blocked", "The score reached the threshold, and this domain withholds such answers."],
};

const READING = "Reading the question…";
const HELD = "Writing. This domain holds an answer back until its verdict…";
const HINT = "Point at a token, or tab to the answer and use the arrow keys.";

/** Fires "token" with the index shown, or null for the answer as a whole. */
export class Answer extends EventTarget {
  constructor({ alpha, domain, threshold, holds }) {
    super();
    this.tokens = []; // what the wire says of each: {token, token_score, score, neurons, text}
    this.text = "";
    this.shown = null; // index of the token that is pointed at or focused
    Object.assign(this, { alpha, domain });
    this.factor = make("span");
    this.conditions = make("p", { class: "conditions" }, this.factor, make("span", {}, domain));
    this.strip = new Tokens();
    this.chart = new Chart(threshold, (index) => this.show(index ?? this.strip.focused));
    this.gauge = new Gauge(threshold);
    this.prose = make("p", { class: "hidden prose" });
    this.message = make("p", { class: "message" });
    this.readout = make("p", { class: "readout", "aria-hidden": "true" }, holds ? HELD : READING);
    this.decision = make("p", { class: "decision" });
    this.figures = make("div", { class: "figures" }, this.gauge.element, this.chart.element);
    this.element = make(
      "div",
      { class: "answer", role: "group" },
      this.conditions,
      this.prose,
      this.strip.element,
      this.message,
      this.readout,
      this.figures,
      this.decision,
    );
    this.name(alpha);
    this.strip.addEventListener("token", (event) => this.show(event.detail));
  }

  /** By what it is written with, which a policy may change. */
  name(alpha) {
    this.title = this.factor.textContent = `α = ${alpha.toFixed(2)}`;
    this.element.setAttribute("aria-label", `Answer with ${this.title}`);
  }

  /** A chunk with a token; text without one is the server's own message. */
  add(text, said) {
    this.text += text;
    if (!said) {
      (this.tokens.length ? this.strip : this.message).append(text);
      return;
    }
    // Models begin an answer with a space before its first word, which no one means.
    const shown = this.tokens.length || !text.trim() ? text : text.trimStart();
    this.tokens.push({ ...said, text });
    this.strip.add(shown, said.token_score);
    this.chart.add(said);
    this.gauge.show(said.score);
    if (this.shown == null) this.show(null);
  }

  /** The last chunk's verdict; an empty answer has none. */
  end(said) {
    if (said.score == null) {
      this.abandon("stopped", "No answer", "The model ended before its first token.");
      return;
    }
    this.name(said.alpha);
    const [name, meaning] = DECISIONS[said.decision](said);
    if (said.decision === "block") this.withhold();
    this.gauge.limit(said.threshold);
    this.gauge.show(said.score);
    this.score = said.score;
    const cut = this.cut ? " It was cut off at the longest length allowed." : "";
    this.close(said.decision, name, meaning + cut, said.threshold);
    if (said.audit_id) this.conditions.append(make("span", { class: "audit" }, "audit ", make("code", {}, said.audit_id)));
  }

  /** Without a verdict: stopped by a person, or by an error. */
  abandon(kind, name, sentence) {
    this.close(kind, name, sentence, this.chart.threshold);
  }

  close(kind, name, sentence, threshold) {
    this.chart.end(threshold);
    this.strip.end();
    this.prose.textContent = this.text.trim();
    this.decision.setAttribute("data-decision", kind);
    this.decision.replaceChildren(icon(kind), make("span", {}, make("strong", {}, `${name}. `), sentence));
    this.spoken = `${name}. ${sentence}`;
    if (this.score === undefined && !this.tokens.length) this.figures.remove();
    this.show(this.shown);
  }

  /** What was shown before the verdict is taken back; the server's message stays. */
  withhold() {
    this.shown = null;
    this.strip.element.remove();
    this.chart.element.replaceWith(make("p", { class: "hint" }, "Its tokens and their scores are withheld too."));
    this.prose.remove();
    this.text = this.message.textContent;
    if (!this.text) this.message.textContent = this.text = "This answer is withheld.";
    this.message.classList.add("withheld");
  }

  show(index) {
    this.shown = index;
    this.strip.mark(index);
    this.chart.point(index);
    this.readout.replaceChildren(...(index == null ? this.summary() : ofToken(this.tokens[index], index)));
    this.dispatchEvent(new CustomEvent("token", { detail: index }));
  }

  summary() {
    if (!this.tokens.length) return [];
    const last = this.score ?? this.tokens.at(-1).score;
    const count = this.tokens.length;
    return [make("b", {}, `${count} ${count === 1 ? "token" : "tokens"}`), ` score ${signed(last)}`, make("i", {}, HINT)];
  }
}

function ofToken(token, index) {
  return [
    make("b", {}, spoken(token.text)),
    ` score ${signed(token.token_score)}`,
    make("i", {}, `answer up to token ${index + 1}: ${signed(token.score)}, confidence ${percent(confidence(token.score))}`),
  ];
}
