// The server's two addresses, and what goes wrong there as sentences.

/** What a request was refused with: a sentence, and the HTTP status (0 where none came). */
export class Refusal extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

/** What the server runs: model, bundle, domains, limits of α. */
export async function describe(key) {
  const response = await request("hq", { headers: headers(key) });
  return response.json();
}

/** The chunks of an answer as they come. */
export async function* ask(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.message ?? "The server failed.");
    yield chunk;
  }
  throw new Refusal("The connection ended before the verdict. Ask again.");
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. See whether hq serve still runs, and ask again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const said = await response.json().then(
    (body) => body?.error?.message,
    () => undefined,
  );
  return new Refusal(sentence(response, said), response.status);
}

function sentence(response, said) {
  const wait = Number(response.headers.get("Retry-After"));
  if (response.status === 429) {
    const when = wait > 0 ? `in ${wait} ${wait === 1 ? "second" : "seconds"}` : "in a moment";
    return `The server is busy with other questions. Try again ${when}.`;
  }
  if (response.status === 401) return "The server asks for an API key, and does not accept this one or none.";
  if (said) return said;
  return `The server refused the question (HTTP ${response.status}).`;
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The connection broke before the verdict. Ask again.");
  }
}
