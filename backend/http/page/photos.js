/** All photos of a collection, and those that could not be indexed. */

import { api, isAborted } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { LabelChips } from "./filters.js";
import * as format from "./format.js";
import { PhotoGrid } from "./grid.js";
import { emptyState, errorPanel } from "./notices.js";
import { formatState } from "./router.js";
import { photoTile } from "./tiles.js";

/** @typedef {import("./api.js").ImageSummary} ImageSummary */
/** @typedef {import("./app.js").App} App */
/** @typedef {import("./router.js").State} State */

const PAGE = 200;

export class PhotosView {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.title = "Photos";
    this.key = "";
    /** @type {import("./api.js").Query | null} for the next page; null where there is none */
    this.next = null;
    /** @type {AbortController | null} */
    this.pending = null;
    this.grid = new PhotoGrid({
      label: "Photos",
      photo: (/** @type {ImageSummary} */ image) => image,
      tile: (image, place) => photoTile(image, app.router.href({ photo: image.id }), place),
      more: () => this.#more(),
      leaves: (id) => app.leaving.has(id),
    });
    this.heading = h("h1", { tabindex: "-1" });
    this.summary = h("p", { class: "quiet" });
    this.tabs = h("nav", { class: "tabs", "aria-label": "Which photos" });
    this.chips = new LabelChips((label) => app.router.go({ label }), { single: true });
    this.message = h("div", { class: "message" });
    this.element = h(
      "div",
      { class: "browse" },
      h("header", {}, this.heading, this.summary, this.tabs),
      h("div", { class: "filters" }, this.chips.element),
      this.message,
      this.grid.element,
    );
  }

  /** @param {State} state */
  show(state) {
    this.#showHead(state);
    const key = formatState({ ...state, photo: null });
    this.pending?.abort(); // what it asks for is wanted no more
    if (this.key !== key) this.#load(state, key);
  }

  hide() {
    this.pending?.abort();
  }

  /** What is listed may be so no more. */
  forget() {
    this.key = "";
  }

  /** @param {State} state */
  async #showHead(state) {
    const { app } = this;
    const { collection } = app;
    fill(this.heading, state.shown === "failed" ? "Photos that failed" : "Photos");
    const tab = (/** @type {"indexed" | "failed"} */ shown, /** @type {string} */ text) =>
      h(
        "a",
        {
          href: app.router.fresh({ view: "photos", shown }),
          "aria-current": state.shown === shown ? "page" : null,
        },
        text,
      );
    fill(this.tabs, tab("indexed", "Indexed"), tab("failed", "Failed"));
    this.chips.element.hidden = state.shown === "failed";
    const labels = await app.labels();
    if (collection !== app.collection) return;
    this.chips.show(labels, app.router.state.label);
    const detail = await app.collectionDetail().catch(() => null);
    if (app.router.state.view !== "photos" || collection !== app.collection) return;
    fill(
      this.tabs,
      tab("indexed", detail ? `${format.number(detail.images)} indexed` : "Indexed"),
      tab("failed", detail ? `${format.number(detail.failed)} failed` : "Failed"),
    );
    fill(
      this.summary,
      detail
        ? `in ‘${detail.name}’, with ${format.many(detail.objects, "object")}`
        : `in ‘${app.collection}’`,
    );
  }

  /** @param {State} state @returns {import("./api.js").Query} */
  #query(state) {
    return {
      collection: this.app.collection,
      state: state.shown,
      label: state.label[0] ?? null,
      limit: PAGE,
    };
  }

  /** @param {State} state @param {string} key */
  async #load(state, key) {
    const pending = new AbortController();
    this.pending = pending;
    this.element.setAttribute("aria-busy", "true");
    const query = this.#query(state);
    try {
      const page = await api.images(query, pending.signal);
      this.key = key;
      this.#goOn(query, page.next_cursor);
      fill(this.message, page.items.length === 0 && this.#nothing(state));
      this.grid.show(page.items, page.next_cursor !== null);
      this.app.restoreScroll();
    } catch (error) {
      if (isAborted(error)) return;
      this.key = "";
      this.next = null;
      this.grid.show([], false);
      fill(
        this.message,
        errorPanel(error, () => this.show(this.app.router.state)),
      );
    } finally {
      if (this.pending === pending) this.element.removeAttribute("aria-busy");
    }
  }

  /** @param {import("./api.js").Query} query @param {string | null} cursor */
  #goOn(query, cursor) {
    this.next = cursor === null ? null : { ...query, cursor };
  }

  async #more() {
    const { next } = this;
    if (next === null) return;
    try {
      const page = await api.images(next);
      if (this.next !== next) return; // others are shown by now
      this.#goOn(next, page.next_cursor);
      this.grid.append(page.items, page.next_cursor !== null);
    } catch (error) {
      if (this.next !== next) return;
      this.grid.tell(errorPanel(error, () => this.grid.retry()));
      throw error;
    }
  }

  /** @param {State} state */
  #nothing(state) {
    const { app } = this;
    if (state.shown === "failed") {
      return emptyState(
        "check",
        "None has failed",
        `Every photo of ‘${app.collection}’ could be read.`,
      );
    }
    if (state.label.length > 0) {
      return emptyState(
        "search",
        "None with that",
        `No photo of ‘${app.collection}’ holds ‘${format.labelName(state.label[0])}’.`,
        h(
          "a",
          { class: "button", href: app.router.href({ label: [] }) },
          h("span", {}, "Show all"),
        ),
      );
    }
    return emptyState(
      "photo",
      "No photos yet",
      `Collection ‘${app.collection}’ is empty. Load a folder, or drop photos of your own.`,
      h(
        "a",
        { class: "button primary", href: app.router.fresh({ view: "loads" }) },
        icon("add"),
        h("span", {}, "Add photos"),
      ),
    );
  }

  /** @param {number} id of a photo that goes */
  removePhoto(id) {
    this.grid.remove(id);
  }
}
