/** Search: a photo in, its objects as outlines, and the photos that hold something like them. */

import { ApiError, api, isAborted } from "./api.js";
import { button, fill, h, icon } from "./dom.js";
import { LabelChips, choice } from "./filters.js";
import * as format from "./format.js";
import { PhotoGrid } from "./grid.js";
import { isReadable } from "./intake.js";
import { emptyState, errorPanel } from "./notices.js";
import { QueryPanel } from "./query.js";
import { NO_FILTERS, NO_SEARCH, formatState } from "./router.js";
import { StartPanel } from "./start.js";
import { hitTile } from "./tiles.js";

/** @typedef {import("./api.js").Hit} Hit */
/** @typedef {import("./api.js").Query} Query */
/** @typedef {import("./api.js").SearchAnswer} SearchAnswer */
/** @typedef {import("./app.js").App} App */
/** @typedef {import("./router.js").State} State */
/**
 * @typedef {object} Found
 * @property {SearchAnswer["query"]} query
 * @property {Hit[]} hits
 * @property {Query | null} next what the next page is asked with; null where there is none
 */

const PAGE = 60;
const REMEMBERED = 12;
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

/**
 * What a search is asked with whose photo the service has.
 * @param {State} state
 * @returns {Query}
 */
function question(state) {
  return { query: state.query, image_id: state.image, object_id: state.like, ...options(state) };
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
    this.message = h("div", { class: "message" });
    this.filters = h("div", { class: "filters" }, this.chips.element, this.choices);
    this.results = h(
      "div",
      { class: "results" },
      h("header", {}, this.heading, this.summary),
      this.filters,
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
    this.#giveUp();
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
    this.#giveUp();
  }

  /** What is being asked is wanted no more. */
  #giveUp() {
    this.pending?.abort();
    this.start.idle();
  }

  /**
   * Searches with a photo that the browser has.
   * @param {Blob} file
   */
  async searchFile(file) {
    const { info } = this.app;
    if (info && file.size > info.max_upload_bytes) {
      this.#refuse(
        new ApiError(
          `The photo has ${format.size(file.size)}; the service takes at most` +
            ` ${format.size(info.max_upload_bytes)}. Choose a smaller one.`,
          413,
          null,
        ),
        null,
      );
      return;
    }
    await this.#send(file, async (query, signal) => {
      if (!(await isReadable(file))) {
        throw new ApiError("This device cannot read that (any more). Choose a photo.", 400, null);
      }
      return api.searchFile(file, query, signal);
    });
  }

  /**
   * Searches with a photo from the web, which the service fetches.
   * @param {string} url
   */
  async searchUrl(url) {
    await this.#send(null, (query, signal) => api.searchUrl(url, query, signal));
  }

  /**
   * @param {Blob | null} file
   * @param {(query: Query, signal: AbortSignal) => Promise<SearchAnswer>} ask
   */
  async #send(file, ask) {
    this.pending?.abort();
    const pending = new AbortController();
    this.pending = pending;
    const state = {
      ...this.app.router.state,
      ...NO_SEARCH,
      photo: null,
      view: /** @type {const} */ ("search"),
    };
    const preview = file && URL.createObjectURL(file);
    this.start.busy(preview);
    try {
      const answer = await ask(options(state), pending.signal);
      pending.signal.throwIfAborted();
      this.pending = null;
      if (answer.query.id === null)
        throw new ApiError("The service has not kept the photo.", 500, null);
      if (preview) this.#keepPreview(answer.query.id, preview);
      const next = { ...state, query: answer.query.id };
      this.#remember(formatState(next), found(answer, question(next)));
      this.app.router.go({ ...NO_SEARCH, view: "search", query: answer.query.id });
      this.show(this.app.router.state); // the same photo again is no change
      this.app.focusHeading();
    } catch (error) {
      if (preview) URL.revokeObjectURL(preview);
      if (pending.signal.aborted) return;
      this.#refuse(error, () => this.#send(file, ask));
    }
  }

  /**
   * Says where a search starts that it did not, and leaves the results of the one before.
   * @param {unknown} error
   * @param {(() => void) | null} retry
   */
  #refuse(error, retry) {
    this.app.router.go(NO_SEARCH);
    this.start.idle();
    this.start.tell(error, retry);
  }

  /** @param {string} id @param {string} url */
  #keepPreview(id, url) {
    const known = this.sent.get(id);
    this.sent.delete(id);
    this.sent.set(id, known ?? url);
    if (known) URL.revokeObjectURL(url);
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
    this.#alone(false);
    this.results.setAttribute("aria-busy", "true");
    fill(this.message);
    if (this.found === null) fill(this.heading, "Searching …");
    try {
      const asked = question(state);
      const answer = found(await api.search(asked, pending.signal), asked);
      this.#remember(key, answer);
      this.#showFound(state, key, answer);
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
    this.#alone(this.query.query === null);
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

  /**
   * What is said stands alone where there is no photo to show beside it.
   * @param {boolean} alone
   */
  #alone(alone) {
    this.query.element.hidden = alone;
    this.filters.hidden = alone;
    this.body.classList.toggle("lone", alone);
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
    this.#alone(false);
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
    const { found: answer } = this;
    const next = answer?.next ?? null;
    if (!answer || next === null) return;
    try {
      const page = await api.search(next);
      if (this.found !== answer) return; // others are shown by now
      answer.hits.push(...page.hits);
      answer.next = following(page, next);
      this.grid.append(page.hits, page.next_cursor !== null);
      if (page.next_cursor === null) {
        fill(this.summary, `${format.many(answer.hits.length, "photo")}, the nearest first`);
      }
    } catch (error) {
      if (this.found !== answer) return;
      this.grid.tell(errorPanel(error, () => this.grid.retry()));
      throw error;
    }
  }

  /** @param {State} state */
  async #showFilters(state) {
    const { router, collection } = this.app;
    const active = document.activeElement;
    const focused = [...this.choices.children].findIndex((each) => each === active);
    fill(
      this.choices,
      choice("Score", SCORES, state.minScore, (minScore) => router.go({ minScore })),
      choice("Size", AREAS, state.minArea, (minArea) => router.go({ minArea })),
      (state.label.length > 0 || state.minScore !== null || state.minArea !== null) &&
        button("close", "Clear", () => router.go(NO_FILTERS), { class: "chip plain" }),
    );
    if (focused >= 0) {
      // "Clear" has gone by itself.
      const again = this.choices.children[focused] ?? this.choices.children[0];
      /** @type {HTMLElement} */ (again).focus();
    }
    const labels = await this.app.labels();
    if (collection === this.app.collection) this.chips.show(labels, router.state.label);
  }

  /** @param {number} id of a photo that goes */
  removePhoto(id) {
    for (const answer of this.answers.values()) {
      answer.hits = answer.hits.filter((hit) => hit.image.id !== id);
    }
    this.grid.remove(id);
  }
}

/** @param {SearchAnswer} answer @param {Query} asked @returns {Found} */
function found(answer, asked) {
  return { query: answer.query, hits: [...answer.hits], next: following(answer, asked) };
}

/** @param {SearchAnswer} answer @param {Query} asked @returns {Query | null} */
function following({ next_cursor }, asked) {
  return next_cursor === null ? null : { ...asked, cursor: next_cursor };
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
