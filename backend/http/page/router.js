/** The page's state is its URL's query string: a link shows the same to everyone. */

/** @typedef {import("./api.js").Box} Box */
/** @typedef {"search" | "photos" | "loads" | "collections"} ViewName */
/**
 * @typedef {object} State
 * @property {ViewName} view
 * @property {string | null} collection null: the service's default
 * @property {string | null} query a kept query photo's id
 * @property {number | null} image an indexed photo that is searched with
 * @property {number | null} like an indexed object that is searched with
 * @property {number[]} object of the query's objects those that are searched for; []: all
 * @property {Box | null} region frame that is searched for
 * @property {"any" | "all"} match
 * @property {string[]} label
 * @property {number | null} minScore
 * @property {number | null} minArea
 * @property {"indexed" | "failed"} shown which photos are listed
 * @property {number | null} photo that is open
 */

/** @type {Readonly<State>} */
const START = Object.freeze({
  view: "search",
  collection: null,
  query: null,
  image: null,
  like: null,
  object: [],
  region: null,
  match: "any",
  label: [],
  minScore: null,
  minArea: null,
  shown: "indexed",
  photo: null,
});

/** Changes that end a search. */
export const NO_SEARCH = Object.freeze({
  query: null,
  image: null,
  like: null,
  object: [],
  region: null,
  match: /** @type {const} */ ("any"),
});

/** Changes that show everything. */
export const NO_FILTERS = Object.freeze({ label: [], minScore: null, minArea: null });

/**
 * @param {string} text of a URL
 * @returns {State} what is no value of a field is passed over
 */
function parseState(text) {
  const query = new URLSearchParams(text);
  /** @param {string} name */
  const whole = (name) => {
    const value = query.get(name);
    return value !== null && /^\d{1,15}$/.test(value) ? Number(value) : null;
  };
  /** @param {string} name */
  const part = (name) => {
    const value = Number.parseFloat(query.get(name) ?? "");
    return value >= 0 && value <= 1 ? value : null;
  };
  const view = query.get("view");
  const region = (query.get("region") ?? "").split(",").map(Number);
  const id = query.get("query");
  return {
    view: view === "photos" || view === "loads" || view === "collections" ? view : "search",
    collection: query.get("collection") || null,
    query: id !== null && /^[0-9a-f]{64}$/.test(id) ? id : null,
    image: whole("image"),
    like: whole("like"),
    object: query
      .getAll("object")
      .filter((each) => /^\d{1,4}$/.test(each))
      .map(Number),
    region:
      region.length === 4 && region.every(Number.isFinite) ? /** @type {Box} */ (region) : null,
    match: query.get("match") === "all" ? "all" : "any",
    label: query.getAll("label"),
    minScore: part("min_score"),
    minArea: part("min_area"),
    shown: query.get("state") === "failed" ? "failed" : "indexed",
    photo: whole("photo"),
  };
}

/** @param {State} state */
export function formatState(state) {
  const query = new URLSearchParams();
  /** @param {string} name @param {string | number | null} value */
  const add = (name, value) => {
    if (value !== null) query.append(name, String(value));
  };
  add("view", state.view === "search" ? null : state.view);
  add("collection", state.collection);
  add("query", state.query);
  add("image", state.image);
  add("like", state.like);
  for (const each of state.object) add("object", each);
  add("region", state.region && state.region.map((each) => Math.round(each)).join(","));
  add("match", state.match === "all" ? "all" : null);
  for (const each of state.label) add("label", each);
  add("min_score", state.minScore);
  add("min_area", state.minArea);
  add("state", state.shown === "failed" ? "failed" : null);
  add("photo", state.photo);
  const text = query.toString();
  return text === "" ? "" : `?${text}`;
}

/** Keeps the state and the URL alike, and tells of changes. */
export class Router {
  /** @param {(state: State, previous: State | null) => void} onChange */
  constructor(onChange) {
    this.state = parseState(location.search);
    this.onChange = onChange;
    /** Whether the way back from a photo is asked for and not gone yet. */
    this.closing = false;
    history.scrollRestoration = "manual";
    addEventListener("popstate", () => this.#show(parseState(location.search)));
    document.addEventListener("click", (event) => this.#followLink(event));
  }

  start() {
    this.onChange(this.state, null);
  }

  /**
   * Where a link leads that changes these parts of the state.
   * @param {Partial<State>} changes
   */
  href(changes) {
    return location.pathname + formatState({ ...this.state, photo: null, ...changes });
  }

  /**
   * A link to another view, without what belongs to this one.
   * @param {Partial<State>} changes
   */
  fresh(changes) {
    return (
      location.pathname + formatState({ ...START, collection: this.state.collection, ...changes })
    );
  }

  /**
   * @param {Partial<State>} changes
   * @param {{replace?: boolean}} [options] replace: without an entry in the history
   */
  go(changes, options) {
    this.open(this.href(changes), options);
  }

  /**
   * @param {string} href
   * @param {{replace?: boolean}} [options]
   */
  open(href, { replace = false } = {}) {
    if (replace) history.replaceState(history.state, "", href);
    else if (href !== location.pathname + location.search) {
      history.pushState({ inside: true }, "", href);
    }
    this.#show(parseState(location.search));
  }

  /** Leaves the open photo: back where it was opened from the page, as a new step elsewhere. */
  closePhoto() {
    if (this.state.photo === null || this.closing) return;
    if (history.state?.photoFrom === formatState({ ...this.state, photo: null })) {
      this.closing = true;
      history.back();
    } else this.go({ photo: null }, { replace: true });
  }

  /**
   * @param {number} photo
   * @param {{replace?: boolean}} [options] replace: instead of the photo that is open
   */
  openPhoto(photo, { replace = false } = {}) {
    const from = replace ? history.state?.photoFrom : formatState({ ...this.state, photo: null });
    const entry = { inside: true, photoFrom: from };
    const href = this.href({ photo });
    if (replace) history.replaceState(entry, "", href);
    else history.pushState(entry, "", href);
    this.#show(parseState(location.search));
  }

  /** @param {State} state */
  #show(state) {
    const previous = this.state;
    this.closing = false;
    this.state = state;
    this.onChange(state, previous);
  }

  /** @param {MouseEvent} event */
  #followLink(event) {
    if (event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target instanceof Element ? event.target.closest("a") : null;
    if (!link || link.target || link.hasAttribute("download")) return;
    if (link.origin !== location.origin || link.pathname !== location.pathname || link.hash) return;
    event.preventDefault();
    const { photo } = parseState(link.search);
    const bare = formatState({ ...parseState(link.search), photo: null });
    if (photo !== null && bare === formatState({ ...this.state, photo: null })) {
      this.openPhoto(photo, { replace: this.state.photo !== null });
    } else this.open(link.pathname + link.search);
  }
}
