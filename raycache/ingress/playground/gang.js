// What the gang is doing now: every engine with its jobs as bars. Whose they are, and what is drawn, nobody is told.

import { readiness } from "./api.js";
import { $, count, el, show } from "./dom.js";

const OFTEN_MS = 1000;
const SELDOM_MS = 3000;

export class GangWatch {
  #timer = 0;
  #asked = 0;
  busy = false;
  /** Called with what `/readyz` says, each time. */
  heard = () => {};

  constructor() {
    document.addEventListener("visibilitychange", () => this.look());
  }

  /** Ask now, and go on asking while somebody looks. */
  async look() {
    clearTimeout(this.#timer);
    if (document.hidden) return;
    const mine = ++this.#asked;
    const state = await readiness().catch(() => ({ ready: false, reason: "it cannot be reached" }));
    if (mine !== this.#asked) return; // asked again meanwhile
    this.#show(state);
    this.heard(state);
    this.#timer = setTimeout(() => this.look(), this.busy || !state.ready ? OFTEN_MS : SELDOM_MS);
  }

  #show(state) {
    const engines = state.engines;
    if (!engines) return $("gang").replaceChildren(hint(state.ready ? "Told to holders of a key." : why(state)));
    if (!engines.length) return $("gang").replaceChildren(hint(why(state)));
    const several = new Set(engines.map((engine) => engine.model_name)).size > 1;
    const made = engines.map((engine, at) => engineOf(engine, at, engines.length > 1, several));
    $("gang").replaceChildren(...made);
  }
}

export function why(state) {
  if (state.reason === "asleep") return "All engines sleep; the next request wakes one.";
  if (state.reason === "starting") return "No engine is ready yet; one is starting.";
  return `No engine is ready: ${state.reason || "none has told why"}`;
}

const hint = (text) => el("p", { class: "hint", text });

function engineOf(engine, at, numbered, named) {
  const jobs = engine.gang.progress || [];
  const name = [numbered && `Engine ${at + 1}`, named && engine.model_name].filter(Boolean).join(", ");
  const waiting = engine.queued ? `; ${count(engine.queued, "job")} waiting` : "";
  const doing = engine.ready ? (jobs.length ? count(jobs.length, "job") : "idle") : "its ranks are being replaced";
  const head = el("p", { class: "engine", text: `${name ? `${name}: ` : ""}${doing}${waiting}` });
  const bars = el("ul", { class: "jobs" }, ...jobs.map(bar));
  show(bars, jobs.length > 0);
  return el("div", {}, head, bars);
}

function bar(job) {
  const what = job.images > 1 ? `${job.images} × ${job.size}` : job.size;
  const far = job.step >= job.steps ? "decoding" : job.step ? `step ${job.step} of ${job.steps}` : "beginning";
  const label = `${what}, ${far}`;
  return el(
    "li",
    {},
    el("span", { text: what }),
    el("progress", { max: job.steps, value: job.step, "aria-label": label }),
    el("span", { text: far }),
  );
}
