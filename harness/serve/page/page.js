// The conversation: what is asked, with what, and the answers as they come.

import { Answer } from "./answer.js";
import { find, make } from "./dom.js";
import { failure } from "./failure.js";
import { legend } from "./legend.js";
import { ofAnswer, ofToken, table } from "./neurons.js";
import { signed, spoken } from "./score.js";
import { Key, Settings, offerThemes } from "./settings.js";
import { Refusal, ask, describe } from "./wire.js";

const LONGEST = 400; // characters of a question that its heading shows
const question = find("question");
const settings = new Settings();
const key = new Key();
let served = null; // what GET /hq said
let turns = []; // {question, answers, element}
let running = null; // the AbortController of the answer that is being written

/** The conversation before a turn: every question with its last whole answer. */
function messages(upTo) {
  const before = turns.slice(0, turns.indexOf(upTo)).flatMap((turn) => {
    const answer = turn.answers.findLast((one) => one.score !== undefined);
    if (!answer) return [];
    return [
      { role: "user", content: turn.question },
      { role: "assistant", content: answer.text },
    ];
  });
  return [...before, { role: "user", content: upTo.question }];
}

function begin(text) {
  const title = `turn-${turns.length}`;
  const shown = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
  const place = make("div", { class: "answers" });
  const element = make("article", { class: "turn", "aria-labelledby": title }, make("h2", { id: title }, shown), place);
  const turn = { question: text, answers: [], element, place };
  find("examples").hidden = true;
  find("restart").hidden = false;
  find("turns").append(element);
  turns.push(turn);
  return turn;
}

/** One answer more to a turn, with α and the domain as they are set now. */
async function answer(turn) {
  const { alpha, domain } = settings;
  const given = new Answer(settings);
  turn.last = given;
  turn.place.querySelector(".failure")?.remove();
  turn.place.append(given.element);
  given.addEventListener("token", (event) => inspect(given, event.detail));
  inspect(given, null);
  given.element.scrollIntoView({ block: "nearest" });
  busy(true);
  say("Writing the answer.");
  const body = { model: served.model, messages: messages(turn), hq: { alpha, domain } };
  try {
    for await (const chunk of ask(body, key.value, running.signal)) take(given, chunk);
    turn.answers.push(given);
    say(`${given.spoken} ${given.score === undefined ? "" : `Score ${signed(given.score)}.`}`);
  } catch (error) {
    await fail(turn, given, error);
  } finally {
    busy(false);
    turn.element.scrollIntoView({ block: "nearest" });
  }
}

function take(given, { choices: [choice], hq }) {
  const text = choice?.delta?.content ?? "";
  const token = hq?.token !== undefined;
  if (token || text) given.add(text, token ? hq : null);
  if (choice?.finish_reason) given.cut = choice.finish_reason === "length";
  if (hq?.decision !== undefined) given.end(hq);
}

async function fail(turn, given, error) {
  if (error.name === "AbortError") {
    given.abandon("stopped", "Stopped", "You ended this answer before its verdict.");
    say("Stopped.");
    return;
  }
  const sentence = error instanceof Refusal ? error.message : `The page could not read the answer (${error.message}).`;
  if (given.tokens.length) given.abandon("error", "Broken off", sentence);
  else given.element.replaceWith(failure(sentence, () => running || answer(turn)));
  if (error.status === 401 && (await key.ask(sentence))) setTimeout(() => answer(turn));
}

/** While an answer is written there is a stop button in the place of the one that asks. */
function busy(now) {
  running = now ? new AbortController() : null;
  const [send, stop] = [find("send"), find("stop")];
  const held = [send, stop, find("repeat")].includes(document.activeElement);
  send.hidden = now;
  stop.hidden = !now;
  if (held) (now ? stop : send).focus();
  offerAgain();
}

/** Offers the last answer anew, once α or the domain is another than it was written with. */
function offerAgain() {
  const last = turns.at(-1)?.last;
  find("again").hidden = running !== null || !last?.element.isConnected;
  const same = last?.score !== undefined && last.alpha === settings.alpha && last.domain === settings.domain;
  find("repeat").hidden = same;
  const elsewhere = last && last.domain !== settings.domain ? `, domain ${settings.domain}` : "";
  find("repeat").textContent = `Answer again with α = ${settings.alpha.toFixed(2)}${elsewhere}`;
  find("again-hint").textContent = same
    ? "Move α to see this answer written another way, beside this one."
    : "Both then stand side by side; the conversation goes on from the last one.";
}

/** Shows the neurons of a token, or of an answer where `index` is null. */
function inspect(given, index) {
  if (!given.element.isConnected) return;
  if (!given.tokens.length) {
    nothing();
    return;
  }
  const token = index == null ? null : given.tokens[index];
  const of = token
    ? `At token ${index + 1}, ${spoken(token.text)}.`
    : `Over the answer with ${given.title}: means of what its tokens' strongest add.`;
  find("neurons-of").textContent = of;
  find("neurons").replaceChildren(table(token ? ofToken(token) : ofAnswer(given.tokens), of));
}

function nothing() {
  find("neurons").replaceChildren();
  find("neurons-of").textContent = "Point at a token, or move to it with the arrow keys.";
}

const say = (text) => (find("status").textContent = text);

function restart() {
  running?.abort();
  turns = [];
  find("turns").replaceChildren();
  nothing();
  find("examples").hidden = false;
  find("restart").hidden = true;
  find("again").hidden = true;
  question.focus();
}

function about({ model, bundle, neurons }) {
  find("model").textContent = model;
  find("count").textContent = neurons.read;
  const facts = {
    Model: model,
    Bundle: `${bundle.name}, validated at ${bundle.precision}`,
    Digest: bundle.digest.slice(0, 16),
    Neurons: `${neurons.read} read, ${neurons.scaled} scaled by α`,
  };
  find("about").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]),
  );
}

/** Asks the server what it runs; until it says, nothing can be asked. */
async function open() {
  try {
    served = await describe(key.value);
  } catch (error) {
    if (error.status === 401 && (await key.ask(error.message))) return open();
    const shown = failure(error.message, () => {
      shown.remove();
      open();
    });
    find("turns").append(shown);
    return undefined;
  }
  about(served);
  settings.offer(served);
  document.body.dataset.ready = "";
  return undefined;
}

function submit(text) {
  if (running || !served || !text.trim()) return;
  question.value = "";
  answer(begin(text.trim()));
}

legend(find("legend"));
offerThemes(find("theme"));
settings.addEventListener("change", offerAgain);
find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(question.value);
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(question.value);
});
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    submit(example.textContent);
    find("stop").focus();
  });
}
find("repeat").addEventListener("click", () => running || answer(turns.at(-1)));
find("stop").addEventListener("click", () => running?.abort());
find("restart").addEventListener("click", restart);
open();
