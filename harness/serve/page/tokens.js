// An answer's tokens: shaded, pointed at, and walked through with the arrow keys.

import { make } from "./dom.js";
import { level, signed, spoken } from "./score.js";

/**
 * A list box whose options are tokens, one of them in the tab order. Fires "token" with the index
 * that is pointed at or focused, null for none.
 */
export class Tokens extends EventTarget {
  constructor() {
    super();
    this.element = make("div", {
      class: "tokens",
      role: "listbox",
      "aria-orientation": "horizontal",
      "aria-label": "Tokens of the answer with their scores",
      "aria-busy": "true",
    });
    this.spans = [];
    this.focused = null;
    this.element.addEventListener("pointerover", (event) => this.tell(this.indexOf(event.target) ?? this.focused));
    this.element.addEventListener("pointerleave", () => this.tell(this.focused));
    this.element.addEventListener("focusin", (event) => this.enter(this.indexOf(event.target)));
    this.element.addEventListener("focusout", () => this.enter(null));
    this.element.addEventListener("click", (event) => this.spans[this.indexOf(event.target)]?.focus());
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  /** The space before a word stands outside of its shading, so that none hangs at a line's end. */
  add(text, score) {
    const index = this.spans.length;
    const [, space, word] = /^( *)(.*)$/s.exec(text);
    const span = make(
      "span",
      {
        class: "token",
        role: "option",
        tabindex: index === 0 ? 0 : -1,
        "aria-selected": "false",
        "aria-label": `${spoken(text)}, score ${signed(score)}`,
        "data-index": index,
        "data-level": level(score),
        "data-break": /^\n+$/.test(word),
      },
      word || space,
    );
    this.spans.push(span);
    this.element.append(word ? space : "", span);
  }

  /** Text that belongs to no token: what was held back to the end. */
  append(text) {
    this.element.append(text);
  }

  end() {
    this.element.removeAttribute("aria-busy");
    if (!this.spans.length) this.element.remove();
  }

  /** Marks the token that is shown elsewhere, on the chart say. */
  mark(index) {
    this.element.querySelector("[data-active]")?.removeAttribute("data-active");
    if (index != null) this.spans[index].setAttribute("data-active", "");
  }

  indexOf(target) {
    const index = target.closest?.(".token")?.dataset.index;
    return index === undefined ? null : Number(index);
  }

  enter(index) {
    if (this.focused != null) this.spans[this.focused].setAttribute("aria-selected", "false");
    this.focused = index;
    if (index != null) {
      this.element.querySelector('[tabindex="0"]')?.setAttribute("tabindex", -1);
      this.spans[index].setAttribute("tabindex", 0);
      this.spans[index].setAttribute("aria-selected", "true");
    }
    this.tell(index);
  }

  tell(index) {
    this.dispatchEvent(new CustomEvent("token", { detail: index }));
  }

  key(event) {
    const to = this.destination(event.key);
    if (event.altKey || event.ctrlKey || event.metaKey || to === undefined) return;
    event.preventDefault();
    if (to === null) document.activeElement.blur();
    else this.spans[to].focus();
  }

  /** Index that a key leads to; null to leave, undefined for a key that is none of ours. */
  destination(key) {
    const [at, last] = [this.focused, this.spans.length - 1];
    switch (key) {
      case "ArrowRight": return Math.min(at + 1, last);
      case "ArrowLeft": return Math.max(at - 1, 0);
      case "ArrowDown": return this.line(1);
      case "ArrowUp": return this.line(-1);
      case "Home": return 0;
      case "End": return last;
      case "Escape": return null;
      default: return undefined;
    }
  }

  /** The token nearest to this one on the line below (1) or above (-1), or this one. */
  line(direction) {
    const boxes = this.spans.map((span) => span.getClientRects()[0] ?? span.getBoundingClientRect());
    const here = boxes[this.focused];
    const half = here.height / 2;
    let best = this.focused;
    let least = Infinity;
    boxes.forEach((box, index) => {
      const rows = (box.top - here.top) * direction;
      const distance = rows * 1e3 + Math.abs(box.left - here.left);
      if (rows > half && distance < least) [best, least] = [index, distance];
    });
    return best;
  }
}
