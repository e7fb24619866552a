// The strip of steps: which were computed and which reused, and how near each was to the threshold. Where single
// blocks are left out (DBPrune), a map of blocks and steps besides.

import { $, el, show } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WHY = {
  warmup: "one of the first, which always are",
  first: "nothing to reuse yet",
  limit: "as many as allowed were reused",
  threshold: "too much had changed",
  non_finite: "the difference was no number",
  schedule: "the schedule says so",
};

export class Steps {
  /** A drawing begins: nothing is known of its steps. */
  begin() {
    this.live = [];
    this.total = 0;
    show($("steps-panel"), false);
  }

  /** One step is done, as a progress event tells it. */
  add({ step, steps, cached, residual_diff: difference }) {
    this.total = steps;
    this.live[step - 1] = { step: step - 1, cached: cached[0] || false, difference: difference[0] ?? null, pruned: [] };
    this.#draw([["", this.live]], {});
  }

  /** What the report says of all; null where nothing was to be decided. */
  finish(report, blocks) {
    if (!report) return;
    const branches = grouped(report.steps);
    const rows = [...branches].map(([name, records]) => [branches.size > 1 ? name : "", records.map(recordOf)]);
    this.#draw(rows, { threshold: report.options.residual_diff_threshold, blocks: report.method === "DBPrune" ? blocks : 0 });
  }

  #draw(rows, { threshold, blocks = 0 }) {
    const focused = document.activeElement?.dataset?.at;
    show($("steps-panel"));
    $("reused-legend").textContent = blocks ? "left out, with the share of blocks" : "reused";
    show($("line-legend"), threshold !== undefined && !blocks);
    $("strips").replaceChildren(...rows.flatMap(([name, records]) => this.#row(name, records, threshold, blocks)));
    if (focused) $("strips").querySelector(`[data-at="${focused}"]`)?.focus();
  }

  #row(name, records, threshold, blocks) {
    const total = Math.max(this.total, records.length);
    const strip = el("div", { class: "strip", role: "group", "aria-label": name ? `Steps, ${name}` : "Steps" });
    const most = Math.max(1e-9, ...records.map((record) => record?.difference ?? 0));
    for (let at = 0; at < total; at += 1) strip.append(stepOf(records[at], at, total, { threshold, blocks, most }));
    if (threshold > 0 && !blocks) strip.append(el("span", { class: "threshold", "aria-hidden": "true" }));
    strip.addEventListener("pointerover", ({ target }) => tell(target));
    strip.addEventListener("focusin", ({ target }) => tell(target));
    strip.addEventListener("keydown", walk);
    strip.querySelector("button")?.setAttribute("tabindex", "0");
    const head = name ? [el("p", { class: "hint", text: name })] : [];
    return blocks ? [...head, strip, mapOf(records, blocks)] : [...head, strip];
  }
}

/** By branch: with guidance of its own calls a step has two records. */
function grouped(records) {
  const found = new Map();
  for (const record of records) found.set(record.branch, [...(found.get(record.branch) || []), record]);
  return found;
}

function recordOf({ step, images: [image] }) {
  const { cached, reason, residual_diff: difference, pruned_blocks: pruned } = image;
  return { step, cached: cached || pruned.length > 0, reason, difference, pruned };
}

function stepOf(record, at, total, { threshold, blocks, most }) {
  const kind = record ? (record.cached ? "reused" : "computed") : "pending";
  const label = record ? told(record, total, threshold, blocks) : `Step ${at + 1} of ${total}: to come`;
  const button = el("button", { type: "button", class: `step ${kind}`, tabindex: "-1", "aria-label": label, "data-at": at });
  // Up to twice the threshold, which is the line in the middle.
  const scale = threshold > 0 ? 2 * threshold : most;
  const high = blocks ? (record?.pruned.length || 0) / blocks : (record?.difference ?? 0) / scale;
  button.append(el("i", { class: "bar" }));
  button.firstChild.style.setProperty("--high", Math.min(1, high).toFixed(3));
  return button;
}

function told(record, total, threshold, blocks) {
  const place = `Step ${record.step + 1} of ${total}: `;
  if (blocks) {
    if (!record.pruned.length) return `${place}all ${blocks} blocks computed${because(record)}`;
    return `${place}${record.pruned.length} of ${blocks} blocks left out: ${ranges(record.pruned)}`;
  }
  if (record.difference === null) return `${place}${record.cached ? "reused" : "computed"}${because(record)}`;
  const relation = threshold === undefined ? "" : `, ${record.difference < threshold ? "below" : "not below"} the threshold ${threshold}`;
  return `${place}${record.cached ? "reused" : "computed"}; difference ${record.difference.toPrecision(3)}${relation}${because(record)}`;
}

const because = (record) => (WHY[record.reason] && record.reason !== "threshold" ? ` (${WHY[record.reason]})` : "");

/** 8, 9, 10, 12 as "8 to 10, 12". */
function ranges(numbers) {
  const runs = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from} to ${to}`)).join(", ");
}

function tell(target) {
  const step = target.closest?.(".step");
  if (step) $("readout").textContent = step.getAttribute("aria-label");
}

function walk(event) {
  const buttons = [...event.currentTarget.querySelectorAll(".step")];
  const at = buttons.indexOf(event.target);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (at < 0 || to === undefined || !buttons[to]) return;
  event.preventDefault();
  buttons[at].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
}

function mapOf(records, blocks) {
  const map = document.createElementNS(SVG, "svg");
  const left = records.reduce((sum, record) => sum + record.pruned.length, 0);
  const label = `Blocks by steps: ${left} of ${blocks * records.length} left out. Each step's are told in the strip above.`;
  const attributes = { class: "map", role: "img", "aria-label": label, viewBox: `0 0 ${records.length} ${blocks}`, preserveAspectRatio: "none" };
  for (const [key, value] of Object.entries(attributes)) map.setAttribute(key, value);
  records.forEach((record, x) => {
    for (const y of record.pruned) {
      const cell = document.createElementNS(SVG, "rect");
      for (const [key, value] of Object.entries({ x, y, width: 1, height: 1 })) cell.setAttribute(key, value);
      map.append(cell);
    }
  });
  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect();
    const x = Math.min(records.length - 1, Math.floor(((event.clientX - box.left) / box.width) * records.length));
    const y = Math.min(blocks - 1, Math.floor(((event.clientY - box.top) / box.height) * blocks));
    if (x < 0 || y < 0) return;
    $("readout").textContent = `Step ${x + 1}, block ${y}: ${records[x].pruned.includes(y) ? "left out" : "computed"}`;
  });
  return map;
}
