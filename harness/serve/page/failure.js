// What went wrong, as a sentence, and a way to try again.

import { icon, make } from "./dom.js";

export function failure(sentence, again) {
  const button = make("button", { type: "button" }, "Try again");
  button.addEventListener("click", again);
  const said = make("p", {}, icon("error"), make("span", {}, sentence));
  return make("div", { class: "failure", role: "alert" }, said, button);
}
