/** A grid of any number of photos, of which only the rows near the viewport are in the document. */

import { append, fill, h, setStyle } from "./dom.js";
import { JustifiedLayout, tileRatio } from "./justify.js";

/** @typedef {import("./api.js").ImageSummary} ImageSummary */
/** @typedef {import("./justify.js").Place} Place */

const GAP = 6;
const NEAR_VIEWPORTS = 0.75;
const AHEAD_VIEWPORTS = 1.5;
const AHEAD_ITEMS = 5;

/**
 * @template {object} Item
 */
export class PhotoGrid {
  /**
   * @param {object} options
   * @param {string} options.label what the list holds, for screen readers
   * @param {(item: Item) => ImageSummary} options.photo
   * @param {(item: Item, place: Place) => HTMLElement} options.tile
   * @param {() => Promise<void>} options.more fetches and appends the next page
   * @param {(id: number) => boolean} options.leaves whether a photo is about to go
   */
  constructor({ label, photo, tile, more, leaves }) {
    this.leaves = leaves;
    this.photo = photo;
    this.tile = tile;
    this.more = more;
    /** @type {Item[]} */
    this.items = [];
    this.hasMore = false;
    /** @type {Promise<void> | null} */
    this.fetching = null;
    this.failed = false;
    /** @type {Map<number, HTMLElement>} */
    this.shown = new Map();
    /** @type {number[]} */
    this.ratios = [];
    this.layout = new JustifiedLayout(0, 1, GAP);
    this.list = h("ul", { class: "grid", "aria-label": label });
    this.end = h("div", { class: "grid-end" });
    this.element = h("div", { class: "grid-frame" }, this.list, this.end);
    this.scheduled = false;
    const schedule = () => this.#schedule();
    addEventListener("scroll", schedule, { passive: true });
    new ResizeObserver(schedule).observe(this.element);
    addEventListener("resize", schedule);
    this.list.addEventListener("keydown", (event) => this.#move(event));
    this.list.addEventListener("focusout", schedule);
  }

  /**
   * Shows other items from their beginning.
   * @param {Item[]} items
   * @param {boolean} hasMore
   */
  show(items, hasMore) {
    this.items = items.filter((item) => !this.leaves(this.photo(item).id));
    this.hasMore = hasMore;
    this.failed = false;
    fill(this.end);
    this.#layOut();
  }

  /**
   * @param {Item[]} items
   * @param {boolean} hasMore
   */
  append(items, hasMore) {
    const staying = items.filter((item) => !this.leaves(this.photo(item).id));
    this.items.push(...staying);
    this.hasMore = hasMore;
    for (const item of staying) this.ratios.push(tileRatio(this.photo(item)));
    this.layout.extend(this.ratios);
    this.#render();
  }

  /**
   * Takes out the items of a photo.
   * @param {number} id
   * @returns {boolean} whether there were any
   */
  remove(id) {
    const rest = this.items.filter((item) => this.photo(item).id !== id);
    if (rest.length === this.items.length) return false;
    const focused = this.#focused();
    this.items = rest;
    this.#layOut();
    if (focused !== null && rest.length > 0) this.focus(Math.min(focused, rest.length - 1));
    return true;
  }

  /**
   * The photo before or after another.
   * @param {number} id
   * @param {1 | -1} direction
   * @returns {ImageSummary | null}
   */
  neighbour(id, direction) {
    const at = this.items.findIndex((item) => this.photo(item).id === id);
    const item = at < 0 ? undefined : this.items[at + direction];
    return item ? this.photo(item) : null;
  }

  /**
   * Fetches what comes next where a photo is near the end of what is there.
   * @param {number} id
   */
  async approach(id) {
    const at = this.items.findIndex((item) => this.photo(item).id === id);
    if (at >= 0 && at + AHEAD_ITEMS >= this.items.length) await this.#fetchMore();
  }

  /**
   * Brings a photo's tile into view and gives it the focus.
   * @param {number} id
   */
  focusPhoto(id) {
    const at = this.items.findIndex((item) => this.photo(item).id === id);
    if (at >= 0) this.focus(at);
    return at >= 0;
  }

  /** @param {number} index */
  focus(index) {
    const place = this.layout.places[index];
    if (!place) return;
    const box = this.list.getBoundingClientRect();
    const top = box.top + place.top;
    const header = document.querySelector(".bar")?.getBoundingClientRect().bottom ?? 0;
    if (top < header + GAP) scrollBy(0, top - header - 2 * GAP);
    else if (top + place.height > innerHeight) scrollBy(0, top + place.height - innerHeight + GAP);
    this.#giveFocus(index);
  }

  /** @param {number} index */
  #giveFocus(index) {
    this.#render(index);
    this.shown.get(index)?.querySelector("a")?.focus({ preventScroll: true });
  }

  /** Asks once more for the page that could not be had. */
  retry() {
    this.failed = false;
    this.#schedule();
  }

  #layOut() {
    for (const index of this.shown.keys()) this.#removeTile(index);
    this.ratios = this.items.map((item) => tileRatio(this.photo(item)));
    const width = this.element.clientWidth;
    const target = width < 500 ? 128 : width < 900 ? 168 : 208;
    this.layout = new JustifiedLayout(width, target, GAP);
    if (width > 0) this.layout.extend(this.ratios);
    this.#render();
  }

  #schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      const width = this.element.clientWidth;
      if (width === 0) return; // of a view that is not shown
      if (width === this.layout.width) {
        this.#render();
        return;
      }
      const focused = this.#focused();
      this.#layOut();
      if (focused !== null) this.#giveFocus(focused);
    });
  }

  /** @param {number} [wanted] an item that must be there as well */
  #render(wanted) {
    if (this.element.clientWidth === 0) return;
    setStyle(this.list, { height: `${this.layout.height}px` });
    const box = this.list.getBoundingClientRect();
    const near = innerHeight * NEAR_VIEWPORTS;
    const range = this.layout.between(-box.top - near, -box.top + innerHeight + near);
    const indices = [];
    if (range) for (let i = range[0]; i <= range[1]; i += 1) indices.push(i);
    for (const extra of [wanted, this.#focused()]) {
      if (extra !== undefined && extra !== null && !indices.includes(extra)) indices.push(extra);
    }
    indices.sort((a, b) => a - b);
    const keep = new Set(indices);
    for (const index of this.shown.keys()) if (!keep.has(index)) this.#removeTile(index);
    /** @type {ChildNode | null} */
    let next = this.list.firstChild;
    for (const index of indices) {
      const there = this.shown.get(index);
      if (there) next = there.nextSibling;
      else this.list.insertBefore(this.#makeTile(index), next);
    }
    if (box.top + this.layout.height < innerHeight * (1 + AHEAD_VIEWPORTS)) this.#fetchMore();
  }

  /** @param {number} index */
  #makeTile(index) {
    const place = this.layout.places[index];
    const element = h(
      "li",
      {
        "aria-setsize": this.hasMore ? -1 : this.items.length,
        "aria-posinset": index + 1,
        style: {
          width: `${place.width}px`,
          height: `${place.height}px`,
          transform: `translate(${place.left}px, ${place.top}px)`,
        },
      },
      this.tile(this.items[index], place),
    );
    this.shown.set(index, element);
    return element;
  }

  /** @param {number} index */
  #removeTile(index) {
    const element = this.shown.get(index);
    element?.remove();
    element?.querySelector("img")?.removeAttribute("src"); // it is loaded no further
    this.shown.delete(index);
  }

  /** @returns {Promise<void>} settled when what is being fetched, if anything, is there */
  #fetchMore() {
    if (!this.fetching && this.hasMore && !this.failed) this.fetching = this.#fetch();
    return this.fetching ?? Promise.resolve();
  }

  async #fetch() {
    fill(this.end, h("p", { class: "quiet" }, "More photos are on their way …"));
    try {
      await this.more();
      fill(this.end);
    } catch {
      this.failed = true; // who fetches has told
    } finally {
      this.fetching = null;
    }
    this.#schedule();
  }

  /**
   * Says something below the last row.
   * @param {...import("./dom.js").Child} children
   */
  tell(...children) {
    fill(this.end);
    append(this.end, children);
  }

  /** @returns {number | null} */
  #focused() {
    const active = document.activeElement;
    if (!active || !this.list.contains(active)) return null;
    for (const [index, element] of this.shown) if (element.contains(active)) return index;
    return null;
  }

  /** @param {KeyboardEvent} event */
  #move(event) {
    const index = this.#focused();
    if (index === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.items.length - 1;
    /** @type {Record<string, () => number>} */
    const moves = {
      ArrowLeft: () => Math.max(0, index - 1),
      ArrowRight: () => Math.min(last, index + 1),
      ArrowUp: () => this.layout.vertical(index, -1),
      ArrowDown: () => this.layout.vertical(index, 1),
      Home: () => 0,
      End: () => last,
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    this.focus(move());
  }
}
