// What is asked of the service: its public API, as any other client would.

// In memory only: a page that is loaded again has forgotten it.
let key = "";

export function giveKey(text) {
  key = text.trim();
}

/** A refusal in the words of the service; status 0 where nobody answered. */
export class ApiError extends Error {
  constructor(status, error, retryAfter = 0) {
    super(error?.message || `the service answered with status ${status}`);
    this.status = status;
    this.param = error?.param || "";
    this.retryAfter = retryAfter;
  }
}

async function send(path, body, signal) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  try {
    // Relative to the page, so that it works under any route prefix.
    return await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The service cannot be reached." });
  }
}

async function granted(response) {
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new ApiError(response.status, said.error, Number(response.headers.get("retry-after")));
}

export async function models() {
  return (await (await granted(await send("v1/models"))).json()).data;
}

/** What every engine says of itself; without a key, where keys are asked for, only whether one serves. */
export async function readiness() {
  const response = await send("readyz");
  return response.json().catch(() => ({ ready: false, reason: `status ${response.status}` }));
}

/** By method the schema of its options, from the service's own description of its bodies. */
export async function cacheMethods() {
  const document = await (await granted(await send("openapi.json"))).json();
  const schemas = Object.values(document.components.schemas);
  // Methods only: not "none", which is the preset `exact`, nor a goal, which is no method.
  const named = schemas.filter(({ properties }) => properties?.type?.const && !["none", "auto"].includes(properties.type.const));
  return new Map(named.map((schema) => [schema.properties.type.const, schema]));
}

/** Draw, and tell of it event by event; leaving the loop or aborting the signal ends the job. */
export async function* drawing(body, signal) {
  const response = await granted(await send("v1/images/generations", { ...body, stream: true }, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The connection broke off before the image was there." });
  } finally {
    reader.cancel().catch(() => {});
  }
}
