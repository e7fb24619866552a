// The few things that every part of the page does with the document.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; `class` and `text` as one writes them. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function show(element, visible = true) {
  element.hidden = !visible;
}

/** Seconds as people read them. */
export function seconds(value) {
  if (value >= 90) return `${Math.round(value / 60)} min`;
  return `${value >= 10 ? Math.round(value) : value.toFixed(value >= 0.995 ? 1 : 2)} s`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
