// The server, as the page asks it.

/** What the server said instead of an answer. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The API key, which the tab forgets when it is closed; given one, it is kept. */
export function key(given) {
  if (given) sessionStorage.setItem("orthrus-mlx key", given);
  return sessionStorage.getItem("orthrus-mlx key");
}

/** A response that is no error. */
export async function request(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Does it still run?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(body?.error?.message ?? `The server answered ${response.status}.`, response.status);
}

/** The server-sent events of a response, up to the last: [what kind of line, its text]. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Refused("The connection ended before the answer did.");
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (event === "data: [DONE]") return;
      const colon = event.indexOf(": ");
      yield [event.slice(0, colon), event.slice(colon + 2)];
    }
  }
}
