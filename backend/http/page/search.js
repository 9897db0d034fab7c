/** Search: a photo in, its objects as outlines, and the photos that hold something like them. */

import { ApiError, api, isAborted, queryFileUrl, thumbnailUrl } from "./api.js";
import { button, fill, h, icon, uniqueId } from "./dom.js";
import { LabelChips, choice } from "./filters.js";
import * as format from "./format.js";
import { Frame } from "./frame.js";
import { PhotoGrid } from "./grid.js";
import { emptyState, errorPanel } from "./notices.js";
import { NO_FILTERS, NO_SEARCH, formatState } from "./router.js";
import { Stage } from "./stage.js";
import { hitTile, thumbnail } from "./tiles.js";

/** @typedef {import("./api.js").Hit} Hit */
/** @typedef {import("./api.js").Query} Query */
/** @typedef {import("./api.js").SearchAnswer} SearchAnswer */
/** @typedef {import("./app.js").App} App */
/** @typedef {import("./router.js").State} State */
/** @typedef {{query: SearchAnswer["query"], hits: Hit[], next: string | null}} Found */

const PAGE = 60;
const REMEMBERED = 12;
const LARGE = 1024;
const SAMPLES = 8;
const SAMPLE_SIDE = 150;
/** @type {[string, number | null][]} */
const SCORES = [
  ["Any score", null],
  ["At least 50 % sure", 0.5],
  ["At least 70 % sure", 0.7],
  ["At least 90 % sure", 0.9],
];
/** @type {[string, number | null][]} */
const AREAS = [
  ["Any size", null],
  ["At least 5 % of the photo", 0.05],
  ["At least 20 % of the photo", 0.2],
  ["At least 50 % of the photo", 0.5],
];

/**
 * What a search is asked with.
 * @param {State} state
 * @returns {Query}
 */
function options(state) {
  return {
    collection: state.collection,
    top_k: PAGE,
    object: state.region ? [] : state.object,
    region: state.region && state.region.map((each) => Math.round(each)).join(","),
    match: state.match === "all" ? "all" : null,
    label: state.label,
    min_score: state.minScore,
    min_area: state.minArea,
  };
}

export class SearchView {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.title = "Search";
    /** @type {AbortController | null} */
    this.pending = null;
    /** @type {Map<string, Found>} the latest answers, for the way back */
    this.answers = new Map();
    /** @type {Map<string, string>} what was sent from this page, by the id it was given */
    this.sent = new Map();
    /** @type {Found | null} */
    this.found = null;
    this.key = "";

    this.start = new StartPanel(app, this);
    this.query = new QueryPanel(app, this);
    this.grid = new PhotoGrid({
      label: "Photos that were found",
      photo: (/** @type {Hit} */ hit) => hit.image,
      tile: (hit, place) => hitTile(hit, app.router.href({ photo: hit.image.id }), place),
      more: () => this.#more(),
      leaves: (id) => app.leaving.has(id),
    });
    this.heading = h("h1", { tabindex: "-1" });
    this.summary = h("p", { class: "quiet" });
    this.chips = new LabelChips((label) => app.router.go({ label }));
    this.choices = h("div", { class: "choices" });
    this.message = h("div", {});
    this.results = h(
      "div",
      { class: "results" },
      h("header", {}, this.heading, this.summary),
      h("div", { class: "filters" }, this.chips.element, this.choices),
      this.message,
      this.grid.element,
    );
    this.body = h("div", { class: "search" }, this.query.element, this.results);
    this.element = h("div", {}, this.start.element, this.body);
  }

  /** @param {State} state */
  show(state) {
    const searching = state.query !== null || state.image !== null || state.like !== null;
    this.start.element.hidden = searching;
    this.body.hidden = !searching;
    this.pending?.abort();
    if (!searching) {
      this.title = "Search";
      this.key = "";
      this.start.show();
      return;
    }
    this.#showFilters(state);
    const key = formatState({ ...state, photo: null });
    const known = this.answers.get(key);
    if (known) this.#showFound(state, key, known);
    else this.#ask(state, key);
  }

  hide() {
    this.pending?.abort();
  }

  /**
   * Searches with a photo that the browser has.
   * @param {Blob} file
   */
  async searchFile(file) {
    const { info } = this.app;
    if (info && file.size > info.max_upload_bytes) {
      this.start.tell(
        new ApiError(
          `The photo has ${format.size(file.size)}; the service takes at most` +
            ` ${format.size(info.max_upload_bytes)}. Choose a smaller one.`,
          413,
          null,
        ),
      );
      return;
    }
    const preview = URL.createObjectURL(file);
    await this.#send(preview, (query, signal) => api.searchFile(file, query, signal));
  }

  /**
   * Searches with a photo from the web, which the service fetches.
   * @param {string} url
   */
  async searchUrl(url) {
    await this.#send(null, (query, signal) => api.searchUrl(url, query, signal));
  }

  /**
   * @param {string | null} preview
   * @param {(query: Query, signal: AbortSignal) => Promise<SearchAnswer>} ask
   */
  async #send(preview, ask) {
    this.pending?.abort();
    const pending = new AbortController();
    this.pending = pending;
    const state = {
      ...this.app.router.state,
      ...NO_SEARCH,
      photo: null,
      view: /** @type {const} */ ("search"),
    };
    this.start.busy(preview);
    try {
      const answer = await ask(options(state), pending.signal);
      if (answer.query.id === null)
        throw new ApiError("The service has not kept the photo.", 500, null);
      if (preview) this.#keepPreview(answer.query.id, preview);
      const next = { ...state, query: answer.query.id };
      this.#remember(formatState(next), found(answer));
      this.start.idle();
      this.app.router.go({ ...NO_SEARCH, view: "search", query: answer.query.id });
      this.app.focusHeading();
    } catch (error) {
      if (isAborted(error)) return;
      this.start.idle();
      this.start.tell(error, () => this.#send(preview, ask));
    }
  }

  /** @param {string} id @param {string} url */
  #keepPreview(id, url) {
    this.sent.set(id, url);
    const [[oldest, old]] = this.sent;
    if (this.sent.size > REMEMBERED) {
      URL.revokeObjectURL(old);
      this.sent.delete(oldest);
    }
  }

  /** @param {State} state @param {string} key */
  async #ask(state, key) {
    const pending = new AbortController();
    this.pending = pending;
    this.query.expect(state);
    this.results.setAttribute("aria-busy", "true");
    fill(this.message);
    if (this.found === null) fill(this.heading, "Searching …");
    try {
      const answer = await api.search(
        { query: state.query, image_id: state.image, object_id: state.like, ...options(state) },
        pending.signal,
      );
      this.#remember(key, found(answer));
      this.#showFound(state, key, found(answer));
      this.app.notices.say(this.heading.textContent ?? "");
    } catch (error) {
      if (isAborted(error)) return;
      this.#showError(state, key, error);
    }
  }

  /** @param {State} state @param {string} key @param {unknown} error */
  #showError(state, key, error) {
    this.results.removeAttribute("aria-busy");
    this.key = "";
    this.found = null;
    fill(this.heading, "No search this time");
    fill(this.summary);
    this.grid.show([], false);
    const elsewhere = h(
      "a",
      { class: "button", href: this.app.router.fresh({}) },
      icon("photo"),
      h("span", {}, "Choose another photo"),
    );
    fill(
      this.message,
      errorPanel(error, () => this.#ask(state, key), elsewhere),
    );
  }

  /** @param {string} key @param {Found} answer */
  #remember(key, answer) {
    this.answers.delete(key);
    this.answers.set(key, answer);
    const [oldest] = this.answers.keys();
    if (this.answers.size > REMEMBERED) this.answers.delete(oldest);
  }

  /** What was found may be so no more: photos have come or gone. */
  forget() {
    this.answers.clear();
    this.key = "";
  }

  /** @param {State} state @param {string} key @param {Found} answer */
  #showFound(state, key, answer) {
    this.results.removeAttribute("aria-busy");
    this.query.show(state, answer.query);
    if (this.key === key && this.found === answer) return;
    this.key = key;
    this.found = answer;
    const what = describe(state, answer.query);
    this.title = what;
    fill(this.heading, what);
    const { hits, next } = answer;
    fill(this.message);
    fill(
      this.summary,
      hits.length === 0
        ? ""
        : next === null
          ? `${format.many(hits.length, "photo")}, the nearest first`
          : "The nearest first",
    );
    if (hits.length === 0) fill(this.message, this.#nothing(state));
    this.grid.show(hits, next !== null);
    this.app.retitle();
  }

  /** @param {State} state */
  #nothing(state) {
    const filtered = state.label.length > 0 || state.minScore !== null || state.minArea !== null;
    if (filtered) {
      return emptyState(
        "search",
        "Nothing is left",
        "No photo passes all of the filters.",
        button("close", "Clear the filters", () => this.app.router.go(NO_FILTERS)),
      );
    }
    return emptyState(
      "photo",
      "Nothing to compare with",
      `Collection ‘${this.app.collection}’ holds no other photos yet.`,
      h(
        "a",
        { class: "button primary", href: this.app.router.fresh({ view: "loads" }) },
        icon("add"),
        h("span", {}, "Add photos"),
      ),
    );
  }

  async #more() {
    const { found: answer, key } = this;
    if (!answer || answer.next === null) return;
    const { state } = this.app.router;
    const id = { query: state.query, image_id: state.image, object_id: state.like };
    try {
      const page = await api.search({ ...id, ...options(state), cursor: answer.next });
      if (this.found !== answer || this.key !== key) return;
      answer.hits.push(...page.hits);
      answer.next = page.next_cursor;
      this.grid.append(page.hits, page.next_cursor !== null);
      if (page.next_cursor === null) {
        fill(this.summary, `${format.many(answer.hits.length, "photo")}, the nearest first`);
      }
    } catch (error) {
      this.grid.tell(errorPanel(error, () => this.grid.retry()));
      throw error;
    }
  }

  /** @param {State} state */
  async #showFilters(state) {
    const { router } = this.app;
    const active = document.activeElement;
    const focused = [...this.choices.children].findIndex((each) => each === active);
    fill(
      this.choices,
      choice("Score", SCORES, state.minScore, (minScore) => router.go({ minScore })),
      choice("Size", AREAS, state.minArea, (minArea) => router.go({ minArea })),
      (state.label.length > 0 || state.minScore !== null || state.minArea !== null) &&
        button("close", "Clear", () => router.go(NO_FILTERS), { class: "chip plain" }),
    );
    if (focused >= 0) /** @type {HTMLElement} */ (this.choices.children[focused])?.focus();
    this.chips.show(await this.app.labels(), this.app.router.state.label);
  }

  /** @param {number} id of a photo that goes */
  removePhoto(id) {
    for (const answer of this.answers.values()) {
      answer.hits = answer.hits.filter((hit) => hit.image.id !== id);
    }
    this.grid.remove(id);
  }
}

/** @param {SearchAnswer} answer @returns {Found} */
function found(answer) {
  return { query: answer.query, hits: [...answer.hits], next: answer.next_cursor };
}

/**
 * @param {State} state
 * @param {SearchAnswer["query"]} query
 */
function describe(state, query) {
  if (state.region) return "Photos with something like the frame";
  const names = query.searched
    .map((index) => query.objects[index])
    .filter(Boolean)
    .map(({ label }) => label);
  if (names.length === 0) return "Photos that were found";
  if (names.length === 1 && names[0] === "image") return "Photos that look like this one";
  const distinct = [...new Set(names.map(format.labelName))];
  const all = state.match === "all" && names.length > 1;
  if (distinct.length > 4) return all ? "Photos with all of these" : "Photos with any of these";
  return `Photos with a similar ${format.listing(distinct, all ? "and" : "or")}`;
}

/** Where a search starts: drop, paste, choose, or give an address. */
class StartPanel {
  /** @param {App} app @param {SearchView} view */
  constructor(app, view) {
    this.app = app;
    this.view = view;
    const input = h("input", {
      type: "file",
      accept: "image/*",
      class: "hidden",
      tabindex: "-1",
      "aria-label": "Photo to search with",
      onchange: () => {
        if (input.files?.[0]) view.searchFile(input.files[0]);
        input.value = "";
      },
    });
    this.input = input;
    const id = uniqueId();
    this.address = h("input", {
      type: "url",
      id,
      required: true,
      placeholder: "https://…",
      autocomplete: "off",
      spellcheck: "false",
    });
    this.form = h(
      "form",
      {
        class: "address",
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          view.searchUrl(this.address.value.trim());
        },
      },
      h("label", { for: id }, "or the address of a photo"),
      h(
        "div",
        { class: "joined" },
        this.address,
        h("button", { type: "submit", class: "button" }, "Search"),
      ),
    );
    this.preview = h("img", { alt: "", class: "preview", hidden: true });
    this.wait = h("p", { class: "wait", role: "status" });
    this.drop = h(
      "div",
      { class: "dropzone" },
      this.preview,
      icon("frame"),
      h("p", { class: "lead" }, "Drop a photo here"),
      h("p", { class: "quiet" }, "paste it, or"),
      button("photo", "Choose a photo", () => input.click(), { class: "button primary" }),
      input,
      this.wait,
    );
    this.message = h("div", {});
    this.samples = h("section", { class: "samples" });
    this.element = h(
      "div",
      { class: "start" },
      h("h1", { tabindex: "-1" }, "Find photos by what is in them"),
      h(
        "p",
        { class: "intro" },
        "Give a photo. Its objects light up: search for one of them, for several, or for any" +
          " part that you frame.",
      ),
      this.message,
      this.drop,
      this.form,
      this.samples,
    );
  }

  /** Asks for a file, wherever the page is. */
  choose() {
    this.input.click();
  }

  show() {
    fill(this.message);
    this.form.hidden = this.app.info?.fetches_urls === false;
    this.#showSamples();
  }

  async #showSamples() {
    const { app } = this;
    const { collection } = app;
    try {
      const { items } = await api.images({ collection, limit: SAMPLES });
      if (collection !== app.collection) return;
      fill(
        this.samples,
        items.length === 0
          ? emptyState(
              "photo",
              "No photos to search among yet",
              `Collection ‘${collection}’ is empty. Load a folder, or drop photos of your own.`,
              h(
                "a",
                { class: "button primary", href: app.router.fresh({ view: "loads" }) },
                icon("add"),
                h("span", {}, "Add photos"),
              ),
            )
          : [
              h("h2", {}, "Or start from a photo that is there"),
              h(
                "ul",
                { class: "strip" },
                items.map((image) =>
                  h(
                    "li",
                    {},
                    h(
                      "a",
                      { class: "tile", href: app.router.fresh({ image: image.id }) },
                      thumbnail(image, SAMPLE_SIDE),
                    ),
                  ),
                ),
              ),
            ],
      );
    } catch (error) {
      if (error instanceof ApiError && error.passing) {
        fill(
          this.samples,
          errorPanel(error, () => this.#showSamples()),
        );
      } else fill(this.samples);
    }
  }

  /** @param {string | null} preview */
  busy(preview) {
    this.element.hidden = false;
    this.view.body.hidden = true;
    fill(this.message);
    this.drop.classList.add("busy");
    this.preview.hidden = preview === null;
    if (preview) this.preview.src = preview;
    fill(this.wait, "Looking at the photo …");
  }

  idle() {
    this.drop.classList.remove("busy");
    this.preview.hidden = true;
    fill(this.wait);
  }

  /** @param {unknown} error @param {(() => void) | null} [retry] */
  tell(error, retry = null) {
    this.element.hidden = false;
    this.view.body.hidden = true;
    fill(this.message, errorPanel(error, retry));
  }
}

/** The photo that is searched with, and what of it. */
class QueryPanel {
  /** @param {App} app @param {SearchView} view */
  constructor(app, view) {
    this.app = app;
    this.view = view;
    /** @type {SearchAnswer["query"] | null} */
    this.query = null;
    /** @type {string | null} */
    this.shown = null;
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
      "all",
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
      this.stage.clear();
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
    }
    this.#mark(query, state);
    this.frame.show(query.width, query.height, state.region);
    if (this.frame.active) this.#toggleDrawing();
    this.#matchChoice(state, query);
    const none = query.objects.every(({ label }) => label === "image");
    fill(
      this.hint,
      none
        ? "No objects were recognized: the photo as a whole is compared. Drag a frame to search for a part of it."
        : "Click an object to search for it alone, or drag a frame.",
    );
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
        radio("all", "Match all of them"),
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
    const active = !this.frame.active;
    this.frame.active = active;
    this.draw.setAttribute("aria-pressed", String(active));
    if (active) {
      this.frame.offer();
      fill(
        this.hint,
        "Drag over the photo, or move the frame with the arrow keys (Shift: resize) and press Enter.",
      );
    }
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
