// What goes with the next request (domain, α, API key), and the theme.

import { find, make } from "./dom.js";
import { keep, recall } from "./memory.js";
import { percent, signed } from "./score.js";

const ACTIONS = {
  annotate: "Marked doubtful",
  regenerate: "Written again",
  block: "Withheld",
};
const THEMES = ["auto", "light", "dark"];

export class Settings extends EventTarget {
  constructor() {
    super();
    this.domains = {};
    this.slider = find("alpha");
    this.picker = find("domain");
    this.slider.addEventListener("input", () => this.changed());
    this.picker.addEventListener("change", () => this.changed());
  }

  get alpha() {
    return Number(this.slider.value);
  }

  get domain() {
    return this.picker.value;
  }

  get threshold() {
    return this.domains[this.domain].threshold;
  }

  /** Whether an answer is held back until its verdict. */
  get holds() {
    return this.domains[this.domain].action !== "annotate";
  }

  /** Takes what the server allows. */
  offer({ domain, domains, alpha }) {
    this.domains = domains;
    this.picker.replaceChildren(...Object.keys(domains).map((name) => make("option", { value: name }, name)));
    this.picker.value = domain;
    Object.assign(this.slider, { min: alpha.least, max: alpha.most, value: 1 });
    this.changed();
  }

  changed() {
    const { threshold, false_alarms: rate, action } = this.domains[this.domain];
    find("alpha-value").textContent = this.alpha.toFixed(2);
    find("policy").textContent =
      `${ACTIONS[action]} from score ${signed(threshold)}; at most ${percent(rate)} false alarms.`;
    this.dispatchEvent(new Event("change"));
  }
}

/** The API key: asked for once a tab, when the server wants one. */
export class Key {
  get value() {
    return recall(() => sessionStorage, "hq-key") ?? "";
  }

  /** Whether a person gave one. */
  ask(why) {
    const dialog = find("key-dialog");
    find("key-why").textContent = why;
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener(
        "close",
        () => {
          const given = dialog.returnValue === "use";
          if (given) keep(() => sessionStorage, "hq-key", find("key").value.trim());
          find("key").value = "";
          resolve(given);
        },
        { once: true },
      );
    });
  }
}

/** A button that goes through the themes, remembered by the browser. */
export function offerThemes(button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  const stored = recall(() => localStorage, "hq-theme");
  show(THEMES.includes(stored) ? stored : "auto");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    keep(() => localStorage, "hq-theme", next);
    show(next);
  });
}
