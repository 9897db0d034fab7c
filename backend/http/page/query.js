/** The photo that is searched with: its objects to choose among, and a frame to draw. */

import { queryFileUrl, thumbnailUrl } from "./api.js";
import { button, fill, h, uniqueId } from "./dom.js";
import * as format from "./format.js";
import { Frame } from "./frame.js";
import { Stage } from "./stage.js";

/** @typedef {import("./api.js").SearchAnswer} SearchAnswer */
/** @typedef {import("./app.js").App} App */
/** @typedef {import("./router.js").State} State */
/** @typedef {import("./search.js").SearchView} SearchView */

const LARGE = 1024;

export class QueryPanel {
  /** @param {App} app @param {SearchView} view */
  constructor(app, view) {
    this.app = app;
    this.view = view;
    /** @type {SearchAnswer["query"] | null} */
    this.query = null;
    /** @type {string | null} */
    this.shown = null;
    /** @type {State | null} of which the frame is shown */
    this.state = null;
    /** Which choice had the focus when they were taken away; -1: none. */
    this.focused = -1;
    this.stage = new Stage((index, object) => this.#outline(index, object));
    this.frame = new Frame(
      this.stage.element,
      (region) => this.#go({ region, object: [], match: "any" }),
      () => {
        if (this.app.router.state.region) this.#go({ region: null, object: [] });
        this.draw.focus();
      },
    );
    this.all = button(
      null,
      "All objects",
      () => this.#go({ object: [], region: null, match: "any" }),
      { class: "button small" },
    );
    this.draw = button("crop", "Frame", () => this.#toggleDrawing(), {
      class: "button small",
      "aria-pressed": "false",
    });
    this.other = button("photo", "New photo", () => view.start.choose(), { class: "button small" });
    this.hint = h("p", { class: "quiet hint" });
    this.match = h("div", { class: "match-choice", hidden: true });
    this.list = h("ul", { class: "objects" });
    this.element = h(
      "section",
      { class: "query", "aria-label": "The photo that is searched with" },
      this.stage.element,
      h("div", { class: "tools" }, this.all, this.draw, this.other),
      this.hint,
      this.match,
      this.list,
    );
  }

  /**
   * While the answer is awaited: the choice shows at once.
   * @param {State} state
   */
  expect(state) {
    if (this.query && this.shown === sourceOf(state)) {
      const searched = state.region
        ? []
        : state.object.length > 0
          ? state.object
          : this.query.objects.map((_, i) => i);
      this.show(state, { ...this.query, searched });
    } else {
      this.query = null;
      this.shown = null;
      this.focused = this.#choices().findIndex((each) => each === document.activeElement);
      this.stage.clear();
      this.frame.show(0, 0, null);
      this.#setDrawing(false);
      fill(this.hint);
      fill(this.list);
      this.match.hidden = true;
      if (state.query) this.stage.showPhoto(this.#file(state.query), "The photo that you gave");
      if (state.image)
        this.stage.showPhoto(thumbnailUrl(state.image, LARGE), "The photo that you chose");
    }
  }

  /**
   * @param {State} state
   * @param {SearchAnswer["query"]} query
   */
  show(state, query) {
    const source = sourceOf(state);
    const same = this.shown === source;
    this.query = query;
    this.shown = source;
    if (query.id) this.stage.showPhoto(this.#file(query.id), "The photo that you gave");
    else if (query.image_id) {
      this.stage.showPhoto(thumbnailUrl(query.image_id, LARGE), "The photo that you chose");
    }
    if (!same) {
      this.stage.showObjects(query.width, query.height, query.objects);
      this.#list(query);
      this.#choices()[this.focused]?.focus({ preventScroll: true });
      this.focused = -1;
    }
    this.#mark(query, state);
    this.#matchChoice(state, query);
    // A frame that is drawn while the answer was awaited stays.
    if (same && this.state === state) return;
    this.state = state;
    this.frame.show(query.width, query.height, state.region);
    this.#setDrawing(false);
    this.#showHint(query);
  }

  /** @param {SearchAnswer["query"]} query */
  #showHint(query) {
    const alone = query.objects.length === 1;
    fill(
      this.hint,
      alone && query.objects[0].label === "image"
        ? "No objects were recognized: the photo as a whole is compared. Drag a frame to search for" +
            " a part of it."
        : alone
          ? "Drag a frame over the photo to search for another part of it."
          : "Click an object to search for it alone, or drag a frame.",
    );
  }

  /** @returns {HTMLElement[]} what an object is chosen with: its outline, and its line in the list */
  #choices() {
    const outlines = /** @type {HTMLElement[]} */ ([...this.stage.layer.children]);
    return [...outlines, ...this.list.querySelectorAll("input")];
  }

  /** @param {string} id */
  #file(id) {
    return this.view.sent.get(id) ?? queryFileUrl(id);
  }

  /** @param {SearchAnswer["query"]} query @param {State} state */
  #mark(query, state) {
    const searched = new Set(query.searched);
    const all = !state.region && state.object.length === 0 && state.like === null;
    this.stage.element.classList.toggle("alone", searched.size === 1 && query.objects.length > 1);
    this.all.setAttribute("aria-pressed", String(all));
    this.all.hidden = query.objects.length < 2 && !state.region;
    [...this.stage.layer.children].forEach((outline, index) => {
      outline.setAttribute("aria-pressed", String(searched.has(index)));
    });
    this.list.querySelectorAll("input").forEach((box, index) => {
      box.checked = searched.has(index);
    });
  }

  /** @param {SearchAnswer["query"]} query */
  #list(query) {
    fill(
      this.list,
      query.objects.map((object, index) =>
        h(
          "li",
          {
            onpointerenter: () => this.#highlight(index, true),
            onpointerleave: () => this.#highlight(index, false),
          },
          h(
            "label",
            {},
            h("input", { type: "checkbox", onchange: () => this.#toggle(index) }),
            h("span", { class: "name" }, format.labelName(object.label)),
            h("span", { class: "count" }, format.score(object.score)),
          ),
        ),
      ),
    );
  }

  /** @param {number} index @param {boolean} on */
  #highlight(index, on) {
    this.stage.layer.children[index]?.classList.toggle("hinted", on);
  }

  /** @param {State} state @param {SearchAnswer["query"]} query */
  #matchChoice(state, query) {
    this.match.hidden = query.searched.length < 2;
    const name = uniqueId();
    /** @param {"any" | "all"} value @param {string} text */
    const radio = (value, text) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name,
          checked: state.match === value,
          onchange: () => this.#go({ match: value }),
        }),
        h("span", {}, text),
      );
    const focused = this.match.contains(document.activeElement);
    fill(
      this.match,
      h(
        "fieldset",
        {},
        h("legend", { class: "hidden" }, "How the chosen objects count"),
        radio("any", "Match any"),
        radio("all", "Match all"),
      ),
    );
    if (focused) this.match.querySelector(/** @type {"input"} */ ("input:checked"))?.focus();
  }

  /** @param {number} index @param {import("./api.js").Detection} object */
  #outline(index, object) {
    return h("button", {
      type: "button",
      "aria-label": `Search for this ${format.labelName(object.label)} alone, ${format.score(object.score)}`,
      onclick: (/** @type {MouseEvent} */ event) => {
        if (event.shiftKey || event.ctrlKey || event.metaKey) this.#toggle(index);
        else this.#go({ object: [index], region: null, match: "any" });
      },
    });
  }

  /** @param {number} index */
  #toggle(index) {
    if (!this.query) return;
    const chosen = new Set(this.query.searched);
    if (chosen.has(index)) chosen.delete(index);
    else chosen.add(index);
    const object = [...chosen].sort((a, b) => a - b);
    const all = object.length === this.query.objects.length;
    this.#go({
      object: all ? [] : object,
      region: null,
      match: object.length > 1 ? this.app.router.state.match : "any",
    });
  }

  #toggleDrawing() {
    this.#setDrawing(!this.frame.active);
    if (this.frame.active) {
      this.frame.offer();
      fill(
        this.hint,
        "Drag over the photo, or move the frame with the arrow keys (Shift: resize) and press Enter.",
      );
    } else if (this.query) {
      this.frame.show(this.query.width, this.query.height, this.app.router.state.region);
      this.#showHint(this.query);
    }
  }

  /** @param {boolean} active */
  #setDrawing(active) {
    this.frame.active = active;
    this.draw.setAttribute("aria-pressed", String(active));
  }

  /**
   * From "more like this object" to its photo, of which other objects can be chosen.
   * @param {Partial<State>} changes
   */
  #go(changes) {
    const { state } = this.app.router;
    const image = state.like === null ? state.image : (this.query?.image_id ?? null);
    const object =
      changes.object ?? (state.like === null ? state.object : (this.query?.searched ?? []));
    this.app.router.go({ like: null, image, ...changes, object });
  }
}

/** @param {State} state */
function sourceOf(state) {
  return `${state.query} ${state.image} ${state.like}`;
}
