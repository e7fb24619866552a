// The page put together: what is asked, what is told while it is drawn, and what came of it.

import { ApiError, drawing, giveKey, models } from "./api.js";
import { $, count, seconds, show } from "./dom.js";
import { showFacts, showWarnings } from "./facts.js";
import { Form } from "./form.js";
import { GangWatch, why } from "./gang.js";
import { Stage, psnr, urlOf } from "./stage.js";
import { Steps } from "./steps.js";

const form = new Form();
const stage = new Stage();
const steps = new Steps();
const gang = new GangWatch();

let known = false; // the form has been filled
let wanted = null; // what is done again once there is a key
let stop = null; // of the job under way
let shown = null; // the result that stands on the stage
let state = {}; // of the service, as it was told last
let announced = 0; // quarters of the steps that a screen reader was told of

function announce(text) {
  $("live").textContent = text;
}

/** Whether a drawing is under way, wherever on the page that shows. */
function busy(controller) {
  stop = controller;
  const active = document.activeElement;
  const lost = active === $("draw") || active === $("abort") || active === $("compare");
  for (const id of ["abort", "under-way"]) show($(id), Boolean(controller));
  show($("draw"), !controller);
  for (const id of ["compare", "keep-seed"]) $(id).disabled = Boolean(controller);
  $("result").setAttribute("aria-busy", String(Boolean(controller)));
  if (lost) $(controller ? "abort" : "draw").focus(); // what had the focus is gone
  gang.busy = Boolean(controller);
  gang.look();
}

function progress(text, value, max) {
  $("progress-text").textContent = text;
  $("progress").max = max || 1;
  if (value === null) $("progress").removeAttribute("value");
  else $("progress").value = value;
}

const left = (event) => (event.seconds_left === null ? "" : `, about ${seconds(event.seconds_left)} left`);

function stepDone(event, compared) {
  progress(`Step ${event.step} of ${event.steps}${left(event)}`, event.step, event.steps);
  const quarter = Math.floor((4 * event.step) / event.steps);
  if (quarter > announced && quarter < 4) announce(`${25 * quarter} percent of the steps are done`);
  announced = Math.max(announced, quarter);
  if (!compared) steps.add(event);
}

function queued(event) {
  const place = event.ahead ? `In the queue: ${count(event.ahead, "job")} ahead` : "Next in the queue";
  progress(`${place}${left(event)}`, null);
  announce(place);
}

/** One image; the result, or null where it was aborted. `compared`: it comes to stand beside the one that is shown. */
async function drawn(body, compared) {
  const controller = new AbortController();
  announced = 0;
  progress(compared ? `Drawing the ${compared} one, to compare` : "Asked", null);
  busy(controller);
  let result = null;
  try {
    for await (const event of drawing(body, controller.signal)) {
      if (event.type === "raycache.queued") queued(event);
      else if (event.type === "raycache.progress") stepDone(event, compared);
      else if (event.type.endsWith(".partial_image")) stage.preview(`data:image/${event.output_format};base64,${event.b64_json}`);
      else if (event.type.endsWith(".completed")) result = { ...event, body, url: urlOf(event.b64_json, event.output_format) };
      else if (event.type === "error") throw new ApiError(500, event.error);
    }
    if (!result) throw new ApiError(0, { message: "The connection ended before the image was there." });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    announce("Aborted");
  } finally {
    busy(null);
  }
  return result;
}

async function draw() {
  if (stop) return;
  forgive();
  const body = form.read();
  if (!body.prompt) return refuse(new ApiError(400, { message: "Say what to draw: the prompt is empty.", param: "prompt" }), draw);
  if (form.model?.capabilities?.previews ?? true) body.partial_images = 3;
  forget();
  stage.shape(body.size);
  stage.clear("Waiting for the first look at it.");
  $("stage").scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  steps.begin();
  showWarnings([]);
  try {
    shown = await drawn(body, "");
  } catch (error) {
    stage.clear("No image came of this.");
    return refuse(error, draw);
  }
  if (!shown) return stage.clear("Aborted. Nothing is drawn any more.");
  shown.name = named(body);
  stage.image(shown.url, shown.body.prompt);
  steps.finish(shown.report, form.model?.capabilities?.num_blocks);
  present(shown, null);
}

const named = (body) => (body.cache ? body.cache.type : body.quality === "auto" ? "default" : body.quality);

/** The word of the other image that this result is compared with; none where there is no other preset. */
function otherOf(result) {
  if (result.report) return "exact";
  const presets = (form.model?.presets || []).filter((word) => word !== "exact");
  return presets.includes("fast") ? "fast" : presets[0];
}

/** The same image with the other preset, and both under the slider. */
async function compare() {
  if (stop || !shown) return;
  forgive();
  const first = shown;
  const word = otherOf(first);
  const { cache: _, partial_images: __, ...body } = first.body;
  let second = null;
  try {
    second = await drawn({ ...body, quality: word, seed: first.seed }, word);
  } catch (error) {
    return refuse(error, compare);
  }
  if (!second) return;
  second.name = word;
  const [exact, cached] = first.report ? [second, first] : [first, second];
  stage.compare(exact, cached);
  if (cached === second) steps.finish(second.report, form.model?.capabilities?.num_blocks);
  present(cached, { exact, psnr: await psnr(exact.url, cached.url) });
  first.beside = second;
  $("slider").focus();
}

function present(result, beside) {
  const said = showFacts(result, beside);
  showWarnings(result.warnings);
  const word = otherOf(result);
  $("compare").textContent = `Compare with ${word}`;
  show($("compare"), Boolean(word) && !beside);
  Object.assign($("save"), { href: result.url, download: `raycache-${result.seed}.${result.output_format}` });
  announce(`The image is there: ${said}`);
}

function forget() {
  for (const result of [shown, shown?.beside]) if (result) URL.revokeObjectURL(result.url);
  shown = null;
  show($("facts"), false);
}

function forgive() {
  form.forgive();
  show($("problem"), false);
}

/** Say why not; without a valid key ask for one, and do `again` what was to be done. */
function refuse(error, again) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) return askForKey(error.message, again);
  const later = error.retryAfter ? `. Try again in ${count(error.retryAfter, "second")}.` : "";
  $("problem").textContent = error.message + later;
  show($("problem"));
  form.blame(error.param);
}

function askForKey(message, again) {
  wanted = again;
  if (message) $("key-why").textContent = `The service says: ${message}. A key stays in this page's memory only.`;
  if (!$("key-dialog").open) $("key-dialog").showModal();
  $("key").focus();
}

/** Fill the form; whether that could be done. */
async function begin() {
  try {
    const found = await models();
    known = found.every((model) => model.capabilities); // else it is asked again: no engine has told yet
    const filled = form.fill(found);
    tellState();
    if (filled) return true;
    refuse(new ApiError(0, { message: "This service draws no images from text alone." }));
  } catch (error) {
    refuse(error, begin);
  }
  return false;
}

function tellState() {
  const text = state.engines ? `${form.model?.id || "the service"} is ready` : "asks for a key";
  $("service").textContent = state.ready ? text : why(state);
  $("service").classList.toggle("ready", Boolean(state.ready));
}

gang.heard = (told) => {
  state = told;
  const closed = state.ready && !state.engines;
  if (closed) show($("key-open"));
  tellState();
  if (closed && !$("key-dialog").open && wanted === null) askForKey("", begin);
  else if (state.ready && state.engines && !known && !stop) begin();
};

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("abort").addEventListener("click", () => stop?.abort());
$("compare").addEventListener("click", compare);
$("keep-seed").addEventListener("click", () => {
  $("seed").value = shown.seed;
  $("seed").focus();
});
$("key-open").addEventListener("click", () => askForKey("", begin));
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  giveKey($("key").value);
  $("key-form").reset();
  $("key-dialog").close();
  const again = wanted;
  forgive();
  gang.look();
  begin().then((filled) => filled && again && again !== begin && again());
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && stop && !$("key-dialog").open) stop.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
});

gang.look();
