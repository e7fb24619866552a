// What a result took, what the cache saved of it, and what was odd.

import { $, el, seconds, show } from "./dom.js";

const percent = (share) => `${Math.round(100 * share)} %`;

/** Show it, and say the gist in a sentence. `beside`: the exact image and the distance to it, once that was drawn. */
export function showFacts(result, beside) {
  const { denoise, encode, decode, queue } = result.times;
  const total = denoise + encode + decode;
  const rows = [["Took", seconds(total), `encoding ${seconds(encode)}, denoising ${seconds(denoise)}, decoding ${seconds(decode)}`]];
  if (queue >= 0.01) rows.push(["Waited", seconds(queue), "in the queue, and while other jobs had their turn"]);
  let said = `it took ${seconds(total)}`;
  if (result.report) {
    const computed = result.report.totals.computed_block_fraction[0];
    const exact = beside ? beside.exact.times.denoise : denoise / computed;
    const saved = Math.max(0, exact - denoise);
    const told = `${seconds(saved)}, ${percent(saved / exact)}`;
    rows.push(["Blocks left out", percent(1 - computed), `of ${result.report.totals.steps} steps' blocks`]);
    if (beside) rows.push(["Saved", told, `measured: exact took ${seconds(exact)} to denoise`]);
    else rows.push(["Saved, about", told, "reckoned from the share of blocks; comparing measures it"]);
    if (beside) rows.push(["PSNR", Number.isFinite(beside.psnr) ? `${beside.psnr.toFixed(1)} dB` : "equal", "to the exact image; more is nearer"]);
    said += `, and ${percent(1 - computed)} of the blocks were left out`;
  } else rows.push(["Blocks left out", "none", "every block ran in every step"]);
  rows.push(["Seed", String(result.seed), "the same seed gives the same image"]);
  $("numbers").replaceChildren(...rows.map(([name, value, title]) => el("div", { title }, el("dt", { text: name }), el("dd", { text: value }))));
  show($("facts"));
  return said;
}

export function showWarnings(warnings) {
  $("warnings").replaceChildren(...warnings.map((text) => el("li", { text })));
  show($("warnings"), warnings.length > 0);
}
