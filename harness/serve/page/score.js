// A score is log odds of a hallucination: 0 is even, higher is worse.

// Where shading steps, on either side of even. Level 0 lies within the first.
export const STEPS = [0.2, 0.6, 1.2];

/** From -3 (blue) through 0 to 3 (orange). */
export function level(score) {
  return Math.sign(score) * STEPS.filter((step) => Math.abs(score) >= step).length;
}

/** Probability that it is no hallucination. */
export const confidence = (score) => 1 / (1 + Math.exp(score));

/** "+0.40", "−1.20": with a sign that screen readers say. */
export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "\u2212" : "+") + text;
}

export const percent = (share) => `${Math.round(share * 100)}%`;

/** A small share with two significant digits: "0.36%". */
export const fine = (share) => `${Number((share * 100).toPrecision(2))}%`;

/** A token's text as words: what it shows, or what it is where it shows nothing. */
export function spoken(text) {
  if (text === "") return "part of a character";
  if (/^\n+$/.test(text)) return "line break";
  return text.trim() === "" ? "space" : `\u201c${text.trim()}\u201d`;
}
