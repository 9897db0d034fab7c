/** Chips and choices that narrow what is found. */

import { button, fill, h, icon } from "./dom.js";
import { labelName, number } from "./format.js";

/** @typedef {import("./api.js").LabelCount} LabelCount */

const FEW = 8;

/** Labels as chips, the most frequent first. */
export class LabelChips {
  /** @param {(labels: string[]) => void} onChange @param {{single?: boolean}} [options] */
  constructor(onChange, { single = false } = {}) {
    this.onChange = onChange;
    this.single = single;
    this.all = false;
    /** @type {LabelCount[]} */
    this.labels = [];
    /** @type {string[]} */
    this.chosen = [];
    this.element = h("div", { class: "chips", role: "group", "aria-label": "Only with" });
  }

  /**
   * @param {LabelCount[]} labels
   * @param {string[]} chosen
   */
  show(labels, chosen) {
    const active = /** @type {HTMLElement | null} */ (document.activeElement);
    const focused = active && this.element.contains(active) ? active.dataset.label : undefined;
    this.labels = labels;
    this.chosen = chosen;
    const known = new Set(labels.map(({ label }) => label));
    const extra = chosen.filter((label) => !known.has(label));
    const shown = labels.filter(({ label }, i) => this.all || i < FEW || chosen.includes(label));
    fill(
      this.element,
      extra.map((label) => this.#chip(label, null)),
      shown.map(({ label, objects }) => this.#chip(label, objects)),
      labels.length > FEW &&
        button(null, this.all ? "Fewer" : `${labels.length - FEW} more`, () => this.#toggleAll(), {
          class: "chip plain",
          "aria-expanded": String(this.all),
          "data-label": "\u0000more",
        }),
    );
    if (focused !== undefined) {
      for (const chip of this.element.querySelectorAll("button")) {
        if (chip.dataset.label === focused) chip.focus();
      }
    }
  }

  #toggleAll() {
    this.all = !this.all;
    this.show(this.labels, this.chosen);
  }

  /** @param {string} label @param {number | null} objects */
  #chip(label, objects) {
    const on = this.chosen.includes(label);
    return h(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-pressed": String(on),
        "data-label": label,
        onclick: () => {
          if (on) this.onChange(this.chosen.filter((each) => each !== label));
          else this.onChange(this.single ? [label] : [...this.chosen, label]);
        },
      },
      on && icon("check"),
      h("span", {}, labelName(label)),
      objects !== null && h("span", { class: "count" }, number(objects)),
    );
  }
}

/**
 * A choice among a few values.
 * @param {string} label
 * @param {[string, number | null][]} options
 * @param {number | null} value
 * @param {(value: number | null) => void} onChange
 */
export function choice(label, options, value, onChange) {
  const known = options.some(([, each]) => each === value);
  /** @type {[string, number | null][]} */
  const all = known ? options : [...options, [`at least ${value}`, value]];
  const select = h(
    "select",
    {
      class: `chip${value === null ? "" : " on"}`,
      "aria-label": label,
      onchange: () => onChange(all[select.selectedIndex][1]),
    },
    all.map(([text, each]) => h("option", { selected: each === value }, text)),
  );
  return select;
}
