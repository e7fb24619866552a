// The image: previews on the way, the result, and two of them under a slider.

import { $, show } from "./dom.js";

export class Stage {
  constructor() {
    $("slider").addEventListener("input", () => this.#cut());
  }

  /** The shape of what comes, so that nothing jumps when it is there. */
  shape(size) {
    const [width, height] = (size || "1x1").split("x").map(Number);
    if (width > 0 && height > 0) $("stage").style.setProperty("--ratio", `${width} / ${height}`);
  }

  clear(text) {
    for (const id of ["image", "under", "slider", "handle", "left", "right"]) show($(id), false);
    $("image").removeAttribute("src");
    $("empty").textContent = text;
    show($("empty"));
  }

  preview(url) {
    this.#alone(url, "Preview of the image");
    $("image").classList.add("preview");
  }

  image(url, alt) {
    this.#alone(url, alt);
    $("image").classList.remove("preview");
  }

  #alone(url, alt) {
    for (const id of ["empty", "under", "slider", "handle", "left", "right"]) show($(id), false);
    $("image").style.removeProperty("clip-path");
    Object.assign($("image"), { src: url, alt });
    show($("image"));
  }

  /** Two results of one prompt and seed: `left` is seen up to the slider, `right` behind it. */
  compare(left, right) {
    Object.assign($("under"), { src: left.url, alt: `${left.name}: ${left.body.prompt}` });
    Object.assign($("image"), { src: right.url, alt: `${right.name}: ${right.body.prompt}` });
    $("image").classList.remove("preview");
    $("left").textContent = left.name;
    $("right").textContent = right.name;
    $("slider").setAttribute("aria-label", `Where the image of ${left.name} ends and that of ${right.name} begins`);
    for (const id of ["image", "under", "slider", "handle", "left", "right"]) show($(id));
    show($("empty"), false);
    $("slider").value = 50;
    this.#cut();
  }

  #cut() {
    const at = `${$("slider").value}%`;
    $("image").style.clipPath = `inset(0 0 0 ${at})`;
    $("handle").style.left = at;
    $("slider").setAttribute("aria-valuetext", `${at} ${$("left").textContent}`);
  }
}

/** A file's address in this page. */
export function urlOf(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: `image/${format}` }));
}

/** Peak signal-to-noise ratio of two images of one size, in dB; Infinity where they are equal. */
export async function psnr(first, second) {
  const [one, other] = await Promise.all([pixels(first), pixels(second)]);
  if (one.length !== other.length) return NaN;
  let sum = 0;
  for (let at = 0; at < one.length; at += 1) if (at % 4 !== 3) sum += (one[at] - other[at]) ** 2; // no alpha
  return 10 * Math.log10((255 ** 2 * (one.length * 3)) / 4 / sum);
}

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}
