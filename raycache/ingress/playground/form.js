// What is asked for: the form, filled from what the service tells of its models.

import { cacheMethods } from "./api.js";
import { $, el, show } from "./dom.js";

const CUSTOM = "custom";
const WORDS = { auto: "Default", exact: "Exact", high: "High", balanced: "Balanced", fast: "Fast", custom: "Custom" };
const HELP = {
  auto: "what this service does by itself",
  exact: "no cache: every block in every step",
  custom: "cache settings of your own",
};
const DEMO_PROMPT = "a red circle left of a blue square";

export class Form {
  #models = [];
  #told = "";
  #methods = null;
  #offered = new Map();

  constructor() {
    $("model").addEventListener("change", () => this.#take(this.model));
    $("presets").addEventListener("change", () => this.#chosen());
    $("method").addEventListener("change", () => this.#options());
    $("lora").addEventListener("change", () => this.#scale());
  }

  /** The model that is asked; undefined before the service has told of any. */
  get model() {
    return this.#models.find((model) => model.id === $("model").value) || this.#models[0];
  }

  /** Fill in what the models allow; false where none draws images from text. */
  fill(models) {
    const images = models.filter(({ alias_of: alias, capabilities: can }) => {
      return !alias && (!can || (can.frame_step === 0 && can.tasks.includes("text-to-image")));
    });
    const told = JSON.stringify(images);
    if (told === this.#told) return images.length > 0; // nothing is torn from under whoever is filling it in
    this.#told = told;
    this.#models = images;
    $("model").replaceChildren(...images.map((model) => el("option", { value: model.id, text: model.id, selected: model.default })));
    show($("model-field"), images.length > 1);
    if (images.length) this.#take(this.model);
    return images.length > 0;
  }

  #take(model) {
    const [width, height] = model.defaults.size.split("x");
    this.#offer("width", width);
    this.#offer("height", height);
    this.#offer("steps", model.defaults.num_inference_steps);
    if (model.capabilities?.kind === "demo") this.#offer("prompt", DEMO_PROMPT);
    for (const id of ["width", "height"]) $(id).step = model.capabilities?.size_multiple || 16;
    $("steps").max = model.limits.max_steps;
    $("prompt").maxLength = model.limits.max_prompt_characters;
    this.#more(model);
    const before = this.quality;
    const words = ["auto", ...model.presets, ...(model.capabilities?.num_blocks === 0 ? [] : [CUSTOM])];
    $("presets").replaceChildren(
      ...words.map((word) =>
        el(
          "label",
          { title: HELP[word] },
          el("input", { type: "radio", name: "quality", value: word, checked: word === (words.includes(before) ? before : "auto") }),
          el("span", { text: WORDS[word] || word }),
        ),
      ),
    );
    this.#chosen();
  }

  /** What only some models take: a negative prompt, its scale, LoRAs. */
  #more({ capabilities, defaults, limits }) {
    const { negative_prompt: negative = false, true_cfg: guided = false, loras = [] } = capabilities || {};
    show($("more"), negative || loras.length > 0);
    $("more-title").textContent = [negative && "Negative prompt", loras.length && "LoRA"].filter(Boolean).join(", ");
    show($("negative-field"), negative);
    show($("true-cfg-field"), guided);
    show($("lora-field"), loras.length > 0);
    $("negative").maxLength = limits.max_prompt_characters;
    this.#offer("negative", defaults.negative_prompt);
    this.#offer("true-cfg", defaults.true_cfg_scale);
    const before = $("lora").value;
    const options = loras.map(({ name }) => el("option", { value: name, text: name, selected: name === before }));
    $("lora").replaceChildren(el("option", { value: "", text: "none" }), ...options);
    this.#scale();
  }

  #scale() {
    const lora = this.model.capabilities?.loras?.find(({ name }) => name === $("lora").value);
    show($("lora-scale-field"), Boolean(lora));
    $("lora-scale").value = lora?.scale ?? "";
  }

  #readMore(body) {
    const { negative_prompt: negative, true_cfg: guided } = this.model?.capabilities || {};
    // Sent only if it is not the default, which the service allows without a scale.
    if (negative && $("negative").value !== this.#offered.get("negative")) body.negative_prompt = $("negative").value;
    if (guided && $("true-cfg").value) body.true_cfg_scale = Number($("true-cfg").value);
    if ($("lora").value) body.lora = { name: $("lora").value };
    if ($("lora").value && $("lora-scale").value) body.lora.scale = Number($("lora-scale").value);
  }

  /** A default, where the user has written nothing of their own. */
  #offer(id, value) {
    if (["", this.#offered.get(id)].includes($(id).value)) $(id).value = value;
    this.#offered.set(id, String(value));
  }

  get quality() {
    return document.querySelector("input[name=quality]:checked")?.value || "auto";
  }

  async #chosen() {
    show($("cache"), this.quality === CUSTOM);
    if (this.quality !== CUSTOM || this.#methods) return;
    try {
      this.#methods = await cacheMethods();
    } catch (error) {
      $("method-help").textContent = error.message;
      return;
    }
    $("method").replaceChildren(...[...this.#methods.keys()].map((name) => el("option", { value: name, text: name, selected: name === "DBCache" })));
    this.#options();
  }

  #options() {
    const schema = this.#methods.get($("method").value);
    $("method-help").textContent = schema.description.split("\n")[0];
    const help = helpOf(schema.description);
    const fields = Object.entries(schema.properties).map(([name, property]) => fieldOf(name, property, help[name]));
    $("options").replaceChildren(...fields.filter(Boolean));
  }

  /** The request's body. */
  read() {
    const body = { prompt: $("prompt").value.trim() };
    if (this.#models.length > 1) body.model = this.model.id;
    if ($("width").value && $("height").value) body.size = `${$("width").value}x${$("height").value}`;
    if ($("steps").value) body.num_inference_steps = Number($("steps").value);
    if ($("seed").value) body.seed = Number($("seed").value);
    this.#readMore(body);
    if (this.quality === CUSTOM) body.cache = this.#cache();
    else body.quality = this.quality;
    return body;
  }

  #cache() {
    const options = { type: $("method").value || "DBCache" };
    for (const input of $("options").querySelectorAll("input")) {
      if (input.type === "checkbox") options[input.name] = input.checked;
      else if (input.value !== "") options[input.name] = Number(input.value);
    }
    return options;
  }

  /** Mark the field that the service found fault with. */
  blame(param) {
    this.forgive();
    const found = param && document.querySelector(`[data-param="${CSS.escape(param)}"]`);
    if (!found) return;
    found.setAttribute("aria-invalid", "true");
    found.setAttribute("aria-describedby", "problem");
    if (found.closest("details")) found.closest("details").open = true; // what is closed cannot get the focus
    (found.matches("input, select, textarea") ? found : found.querySelector("input"))?.focus();
  }

  forgive() {
    for (const field of document.querySelectorAll("[aria-invalid]")) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }
  }
}

/** What the docstring of a method says of each option. */
function helpOf(description) {
  const lines = description.split("\n").filter((line) => line.startsWith("    "));
  const joined = lines.map((line) => line.slice(4)).join("\n").replace(/\n {4}/g, " ");
  return Object.fromEntries(joined.split("\n").map((line) => line.split(/: (.*)/s)));
}

function fieldOf(name, property, help = "") {
  const kind = property.anyOf?.find((one) => one.type !== "null") || property;
  if (name === "type" || !["integer", "number", "boolean"].includes(kind.type)) return null; // lists keep their default
  const id = `option-${name}`;
  const input = el("input", { id, name, "data-param": `cache.${name}`, title: help });
  if (kind.type === "boolean") Object.assign(input, { type: "checkbox", checked: property.default });
  else {
    Object.assign(input, { type: "number", step: kind.type === "integer" ? 1 : "any", value: property.default ?? "" });
    if (kind.minimum !== undefined) input.min = kind.minimum;
    if (kind.maximum !== undefined) input.max = kind.maximum;
  }
  return el("div", { class: "field" }, el("label", { for: id, text: name.replaceAll("_", " "), title: help }), input);
}
