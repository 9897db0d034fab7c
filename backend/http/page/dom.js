/** Makes elements. Text goes in as text: nothing here, or elsewhere, parses markup. */

/** @typedef {Node | string | number | null | undefined | false} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with properties and children.
 * `on…` are listeners, `class` and all else attributes (true: without a value, false or null:
 * left out), `style` an object of CSS properties.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") setStyle(element, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/**
 * @param {Element} element
 * @param {(Child | Child[])[]} children
 */
export function append(element, children) {
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(typeof child === "number" ? String(child) : child);
    }
  }
}

/**
 * Replaces all that an element holds.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/**
 * Through the CSS object model, which a Content-Security-Policy allows.
 * @param {HTMLElement} element
 * @param {Record<string, string | number>} style
 */
export function setStyle(element, style) {
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, String(value));
}

/**
 * A symbol of index.html; decoration only.
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button with an icon and words.
 * @param {string | null} symbol
 * @param {string} text
 * @param {(event: MouseEvent) => void} onclick
 * @param {Record<string, any>} [props]
 */
export function button(symbol, text, onclick, props = {}) {
  return h(
    "button",
    { type: "button", class: "button", onclick, ...props },
    symbol && icon(symbol),
    h("span", {}, text),
  );
}

/**
 * Whether an element takes part in what is laid out: not in a view or a dialog that is hidden.
 * @param {Element} element
 */
export function isShown(element) {
  return element.getClientRects().length > 0;
}

let lastId = 0;

/** An id that no other element bears. */
export function uniqueId() {
  lastId += 1;
  return `u${lastId}`;
}
