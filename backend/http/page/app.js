/** Puts the page together: views, the header, and what they share. */

import { Access } from "./access.js";
import { api } from "./api.js";
import { setUpAppearance } from "./appearance.js";
import { CollectionsView } from "./collections.js";
import { fill, h, isShown } from "./dom.js";
import { basename, many } from "./format.js";
import { takeDrops, takePastes } from "./intake.js";
import { LoadsView } from "./loads.js";
import { Notices, errorPanel, sentence } from "./notices.js";
import { PhotosView } from "./photos.js";
import { NO_SEARCH, Router, formatState } from "./router.js";
import { SearchView } from "./search.js";
import { Viewer } from "./viewer.js";

/** @typedef {import("./api.js").CollectionDetail} CollectionDetail */
/** @typedef {import("./api.js").CollectionSummary} CollectionSummary */
/** @typedef {import("./api.js").ImageSummary} ImageSummary */
/** @typedef {import("./router.js").State} State */

const SITE = "Image similarity search";

/** @param {string} id */
function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html lacks #${id}`);
  return element;
}

export class App {
  constructor() {
    this.main = byId("main");
    this.picker = /** @type {HTMLSelectElement} */ (byId("collection"));
    this.notices = new Notices(byId("toasts"), byId("spoken"));
    /** @type {import("./api.js").Info | null} */
    this.info = null;
    /** @type {Map<string, Promise<CollectionDetail>>} */
    this.details = new Map();
    /** @type {Set<number>} photos that are deleted unless that is undone in time */
    this.leaving = new Set();
    /** @type {Map<string, number>} how far each state was scrolled */
    this.scrolls = new Map();
    this.router = new Router((state, previous) => this.#show(state, previous));
    this.views = {
      search: new SearchView(this),
      photos: new PhotosView(this),
      loads: new LoadsView(this),
      collections: new CollectionsView(this),
    };
    this.viewer = new Viewer(this, () => this.#grid);
    this.access = new Access(byId("key"));
    setUpAppearance(byId("theme"));
    this.picker.addEventListener("change", () => {
      const collection = this.picker.value;
      this.router.go({
        collection,
        label: [],
        ...(this.router.state.like === null ? {} : NO_SEARCH),
      });
    });
    takeDrops({
      adds: () => this.#dropsAdd,
      takeFiles: (files, unread) => this.#takeFiles(files, unread),
      takeUrl: (url) => this.#searchUrl(url),
    });
    takePastes({
      takeFile: (file) => this.#searchFile(file),
      takeUrl: (url) => this.#searchUrl(url),
    });
  }

  async start() {
    try {
      await this.access.start();
      this.info = await api.info();
    } catch (error) {
      fill(
        this.main,
        errorPanel(error, () => this.start()),
      );
      return;
    }
    fill(
      this.main,
      Object.values(this.views).map((view) => view.element),
    );
    this.refreshCollections().catch(() => {}); // the view says what is wrong
    this.router.start();
  }

  /** The collection that all views look into. */
  get collection() {
    return this.router.state.collection ?? this.info?.default_collection ?? "";
  }

  get #view() {
    return this.views[this.router.state.view];
  }

  get #grid() {
    const view = this.#view;
    return "grid" in view ? view.grid : null;
  }

  /** Whether dropped files are added to the collection, not searched with. */
  get #dropsAdd() {
    return this.router.state.view === "loads" || this.router.state.view === "photos";
  }

  /** @param {State} state @param {State | null} previous */
  #show(state, previous) {
    const key = formatState({ ...state, photo: null });
    const before = previous && formatState({ ...previous, photo: null });
    const active = document.activeElement;
    if (state.photo === null) this.viewer.show(null); // beneath it nothing takes the focus
    if (key !== before) {
      if (before !== null) this.scrolls.set(before, scrollY);
      for (const [name, view] of Object.entries(this.views)) {
        if (name !== state.view && !view.element.hidden) view.hide();
        view.element.hidden = name !== state.view;
      }
      this.#showHeader(state);
      this.#view.show(state);
      this.restoreScroll();
      const lost = active !== null && active !== document.body && !isShown(active);
      if (previous && (previous.view !== state.view || lost)) this.focusHeading();
    }
    const closed = previous?.photo ?? null;
    this.viewer.show(state.photo);
    if (state.photo === null && closed !== null && key === before) this.#grid?.focusPhoto(closed);
    this.retitle();
  }

  /** Names the page for the tab and the history. */
  retitle() {
    document.title = `${this.#view.title} · ${SITE}`;
  }

  /** Back to where this state was left. */
  restoreScroll() {
    scrollTo(0, this.scrolls.get(formatState({ ...this.router.state, photo: null })) ?? 0);
  }

  /** Where a keyboard goes on after a change of view. */
  focusHeading() {
    const heading = [...this.#view.element.querySelectorAll("h1")].find(
      (each) => each.offsetParent,
    );
    heading?.focus({ preventScroll: true });
    if (heading) this.notices.say(heading.textContent ?? "");
  }

  /** @param {State} state */
  #showHeader(state) {
    for (const link of document.querySelectorAll("[data-view]")) {
      if (!(link instanceof HTMLAnchorElement)) continue;
      const view = /** @type {import("./router.js").ViewName} */ (link.dataset.view);
      link.href = this.router.fresh({ view });
      if (view === state.view && link.className !== "brand")
        link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.#fillPicker([...this.picker.options].map((option) => option.value));
  }

  /** @param {string[]} names */
  #fillPicker(names) {
    const all = [...new Set([...names, this.collection])].filter(Boolean).sort();
    fill(
      this.picker,
      all.map((name) => h("option", { value: name, selected: name === this.collection }, name)),
    );
  }

  /** @returns {Promise<CollectionSummary[]>} */
  async refreshCollections() {
    const { items } = await api.collections();
    fill(this.picker);
    this.#fillPicker(items.map(({ name }) => name));
    return items;
  }

  /** @returns {Promise<CollectionDetail>} of the collection in use */
  collectionDetail() {
    const name = this.collection;
    const known = this.details.get(name);
    if (known) return known;
    const asked = api.collection(name);
    this.details.set(name, asked);
    asked.catch(() => this.details.delete(name));
    return asked;
  }

  /** @returns {Promise<import("./api.js").LabelCount[]>} of the collection in use; [] where there is none */
  async labels() {
    try {
      return (await this.collectionDetail()).labels;
    } catch {
      return [];
    }
  }

  /** Photos have come or gone: what was remembered is asked for anew. */
  contentsChanged() {
    this.details.clear();
    this.views.search.forget();
    this.views.photos.forget();
    // Whoever has scrolled down keeps the place; the list is made anew on the next visit.
    if (this.router.state.view === "photos" && scrollY < innerHeight / 2) {
      this.views.photos.show(this.router.state);
    }
    this.refreshCollections().catch(() => {});
  }

  /**
   * Takes a photo out of the page now, and out of the service unless that is undone in time.
   * @param {ImageSummary} image
   */
  deletePhoto(image) {
    const grid = this.#grid;
    const next = grid?.neighbour(image.id, 1) ?? grid?.neighbour(image.id, -1) ?? null;
    this.router.closePhoto();
    this.viewer.show(null);
    this.leaving.add(image.id);
    for (const view of [this.views.search, this.views.photos]) view.removePhoto(image.id);
    if (!next || !grid?.focusPhoto(next.id)) this.focusHeading();
    const name = basename(image.path);
    const restore = () => {
      this.leaving.delete(image.id);
      this.contentsChanged();
      this.scrolls.set(formatState({ ...this.router.state, photo: null }), scrollY);
      this.#view.show(this.router.state);
    };
    this.notices.undoable(`‘${name}’ is being deleted.`, {
      act: async () => {
        try {
          await api.removeImage(image.id);
          this.leaving.delete(image.id);
          this.contentsChanged();
          this.notices.say(`${name} is deleted.`);
        } catch (error) {
          this.notices.toast(`‘${name}’ is still there. ${sentence(error)}`, "alert");
          restore();
        }
      },
      undo: () => {
        restore();
        this.notices.toast(`‘${name}’ stays.`);
      },
    });
  }

  /** @param {File[]} files @param {string[]} unread names of what cannot be read */
  #takeFiles(files, unread) {
    if (!this.info) return;
    if (unread.length > 0) {
      const others = unread.length > 1 ? ` and ${many(unread.length - 1, "other")}` : "";
      this.notices.toast(`‘${unread[0]}’${others} cannot be read by this device.`, "alert");
    } else if (files.length === 0) this.notices.toast("The folder is empty.", "alert");
    if (files.length === 0) return;
    if (this.#dropsAdd) {
      if (this.router.state.view !== "loads")
        this.router.open(this.router.fresh({ view: "loads" }));
      this.views.loads.upload(files);
    } else {
      if (files.length > 1) this.notices.toast("Only the first is searched with.", "alert");
      this.#searchFile(files[0]);
    }
  }

  /** @param {File} file */
  #searchFile(file) {
    if (!this.info) return;
    if (this.router.state.view !== "search") this.router.open(this.router.fresh({}));
    this.router.closePhoto();
    this.views.search.searchFile(file);
  }

  /** @param {string} url */
  #searchUrl(url) {
    if (!this.info) return;
    if (this.router.state.view !== "search") this.router.open(this.router.fresh({}));
    this.router.closePhoto();
    this.views.search.searchUrl(url);
  }
}

new App().start();
