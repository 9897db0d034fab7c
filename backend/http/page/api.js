/** What the page asks the service for. Paths are relative to the page: it may live under a prefix. */

/** @typedef {[number, number, number, number]} Box x1, y1, x2, y2 in pixels of the upright photo */
/** @typedef {{label: string, score: number, box: Box}} Detection */
/** @typedef {Detection & {id: number}} ObjectDetail */
/**
 * @typedef {object} ImageSummary
 * @property {number} id
 * @property {string} collection
 * @property {string} path
 * @property {string} sha256
 * @property {number} bytes
 * @property {number} width
 * @property {number} height
 * @property {"indexed" | "failed"} state
 * @property {string | null} error
 */
/** @typedef {ImageSummary & {objects: ObjectDetail[]}} ImageDetail */
/** @typedef {{items: ImageSummary[], next_cursor: string | null}} ImageList */
/** @typedef {{query_object: number | null, distance: number, object: ObjectDetail}} Match */
/** @typedef {{distance: number, image: ImageSummary, matches: Match[]}} Hit */
/**
 * @typedef {object} QueryPhoto
 * @property {string | null} id
 * @property {number | null} image_id
 * @property {number} width
 * @property {number} height
 * @property {Detection[]} objects
 * @property {number[]} searched
 */
/**
 * @typedef {object} SearchAnswer
 * @property {string} collection
 * @property {QueryPhoto} query
 * @property {Hit[]} hits
 * @property {string | null} next_cursor
 */
/** @typedef {{detail: string, status: number, code: string}} Problem */
/**
 * @typedef {object} UploadResult
 * @property {number} status
 * @property {string | null} filename
 * @property {ImageDetail | null} image
 * @property {Problem | null} problem
 */
/**
 * @typedef {object} Duplicate
 * @property {ImageSummary} image
 * @property {boolean} exact
 * @property {number | null} bits
 * @property {number | null} distance
 */
/**
 * @typedef {object} LoadDetail
 * @property {number} id
 * @property {string} collection
 * @property {string} folder
 * @property {boolean} prune
 * @property {"running" | "done" | "failed" | "cancelled"} state
 * @property {string | null} waiting_for
 * @property {{total: number, processed: number, indexed: number, unchanged: number,
 *   failed: number, removed: number, passed_over: number, objects: number}} counts
 * @property {number | null} photos_per_second
 * @property {number | null} seconds_left
 * @property {string} started_at
 * @property {string | null} finished_at
 * @property {string | null} error
 * @property {{path: string, reason: string}[]} failures
 */
/**
 * @typedef {object} CollectionSummary
 * @property {string} name
 * @property {number} images
 * @property {number} failed
 * @property {string} embedder
 * @property {number} dimension
 * @property {boolean} compatible
 */
/** @typedef {{label: string, objects: number}} LabelCount */
/** @typedef {CollectionSummary & {objects: number, labels: LabelCount[]}} CollectionDetail */
/**
 * @typedef {object} Info
 * @property {string} version
 * @property {string} default_collection
 * @property {string[]} labels
 * @property {number} max_upload_bytes
 * @property {boolean} fetches_urls
 */
/** @typedef {Record<string, string | number | (string | number)[] | null | undefined>} Query */

const BASE = new URL("../api/v1/", import.meta.url);

/** @type {string | null} the API key */
let key = null;
/** Asks for a key that the service takes. */
let askForKey = async () => {};

/**
 * Has requests bear a key.
 * @param {string | null} given null: none
 * @param {() => Promise<void>} ask for another, when the service takes no request without
 */
export function useKey(given, ask) {
  key = given;
  askForKey = ask;
}

/** An answer that is no success, or none at all; `message` is a sentence for people. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status of HTTP; 0 where nobody has answered
   * @param {number | null} retryAfter seconds after which to ask again
   */
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** Whether what was asked for is not there. */
  get missing() {
    return this.status === 404;
  }

  /** Whether the same may work later. */
  get passing() {
    return this.status === 0 || this.status === 503 || this.busy;
  }

  /** Whether others have brought more than the service can take on at once. */
  get busy() {
    return this.status === 429;
  }
}

/**
 * What a list of a collection holds that may not be there yet: it is made with its first photo.
 * @template {{items: unknown[], next_cursor: string | null}} List
 * @param {Promise<List>} asked
 * @returns {Promise<List>}
 */
async function orEmpty(asked) {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof ApiError && error.missing) {
      return /** @type {any} */ ({ items: [], next_cursor: null });
    }
    throw error;
  }
}

/**
 * A request that was given up on purpose.
 * @param {unknown} error
 */
export function isAborted(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/**
 * @param {string} path below /api/v1/
 * @param {Query} [query] values that are null, undefined or [] are left out
 */
export function apiUrl(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined) continue;
    for (const each of Array.isArray(value) ? value : [value]) {
      url.searchParams.append(name, String(each));
    }
  }
  return url.href;
}

/**
 * Calls, and once more with another key where the service wants one.
 * @param {string} method
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>} the answer's JSON; null where it has none
 */
async function call(method, path, options = {}) {
  try {
    return await callOnce(method, path, options);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 401) throw error;
    await askForKey();
    return callOnce(method, path, options);
  }
}

/**
 * @typedef {{query?: Query, json?: unknown, form?: FormData, signal?: AbortSignal,
 *   headers?: Record<string, string>}} Options
 */
/**
 * @param {string} method
 * @param {string} path
 * @param {Options} options
 * @returns {Promise<any>} the answer's JSON; null where it has none
 */
async function callOnce(method, path, { query, json, form, signal, headers = {} }) {
  let response;
  try {
    response = await fetch(apiUrl(path, query), {
      method,
      signal,
      body: form ?? (json === undefined ? undefined : JSON.stringify(json)),
      headers: {
        ...(json === undefined ? {} : { "Content-Type": "application/json" }),
        ...(key === null ? {} : { "X-API-Key": key }),
        ...headers,
      },
    });
    if (response.status === 204) return null;
    const body = response.headers.get("Content-Type")?.includes("json")
      ? await response.json()
      : null;
    if (response.ok) return body;
    const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    throw new ApiError(
      inWords(body, response.status),
      response.status,
      Number.isNaN(wait) ? null : wait,
    );
  } catch (error) {
    if (error instanceof ApiError || isAborted(error)) throw error;
    throw new ApiError(
      navigator.onLine
        ? "The service does not answer. See whether it is running, then try again."
        : "This device is offline. Connect it, then try again.",
      0,
      null,
    );
  }
}

/**
 * @param {any} body
 * @param {number} status
 */
function inWords(body, status) {
  if (status === 429) return "The service has as much to do as it can at the moment.";
  const text = body?.detail ?? body?.msg;
  if (typeof text === "string" && text !== "") {
    return text.charAt(0).toUpperCase() + text.slice(1);
  }
  if (status === 413) return "That is larger than the service takes.";
  if (status >= 500) return "The service cannot do that at the moment. Try again in a while.";
  return "The service did not understand that.";
}

/** @param {Blob[]} files */
function asForm(files) {
  const form = new FormData();
  for (const file of files) {
    form.append("image", file, file instanceof File && file.name ? file.name : "photo");
  }
  return form;
}

/** Every request that the page makes. */
export const api = {
  /** @returns {Promise<{seconds: number}>} for which images are shown */
  beginSession: () => callOnce("POST", "session", {}),

  endSession: () => callOnce("DELETE", "session", {}),

  /** @returns {Promise<Info>} */
  info: () => call("GET", "info"),

  /**
   * @param {Blob} file
   * @param {Query} query
   * @param {AbortSignal} signal
   * @returns {Promise<SearchAnswer>}
   */
  searchFile: (file, query, signal) =>
    call("POST", "search", { query, form: asForm([file]), signal }),

  /**
   * @param {string} url
   * @param {Query} query
   * @param {AbortSignal} signal
   * @returns {Promise<SearchAnswer>}
   */
  searchUrl: (url, query, signal) => call("POST", "search", { query, json: { url }, signal }),

  /**
   * @param {Query} query
   * @param {AbortSignal} [signal]
   * @returns {Promise<SearchAnswer>}
   */
  search: (query, signal) => call("GET", "search", { query, signal }),

  /**
   * @param {Query} query
   * @param {AbortSignal} [signal]
   * @returns {Promise<ImageList>}
   */
  images: (query, signal) => orEmpty(call("GET", "images", { query, signal })),

  /**
   * @param {number} id
   * @param {AbortSignal} [signal]
   * @returns {Promise<ImageDetail>}
   */
  image: (id, signal) => call("GET", `images/${id}`, { signal }),

  /** @param {number} id */
  removeImage: (id) => call("DELETE", `images/${id}`),

  /**
   * @param {number} id
   * @param {AbortSignal} [signal]
   * @returns {Promise<{items: Duplicate[]}>}
   */
  duplicates: (id, signal) => call("GET", `images/${id}/duplicates`, { signal }),

  /**
   * @param {File[]} files
   * @param {string} collection
   * @param {string} key under which the request may be repeated without harm
   * @param {AbortSignal} signal
   * @returns {Promise<{results: UploadResult[]}>}
   */
  upload: (files, collection, key, signal) =>
    call("POST", "images", {
      query: { collection },
      form: asForm(files),
      signal,
      headers: { "Idempotency-Key": key },
    }),

  /**
   * @param {string} folder
   * @param {string} collection
   * @param {boolean} prune
   * @returns {Promise<LoadDetail>}
   */
  load: (folder, collection, prune) =>
    call("POST", "loads", { json: { folder, collection, prune } }),

  /**
   * @param {Query} query
   * @returns {Promise<{items: LoadDetail[], next_cursor: string | null}>}
   */
  loads: (query) => orEmpty(call("GET", "loads", { query })),

  /**
   * @param {number} id
   * @returns {Promise<LoadDetail>}
   */
  loadDetail: (id) => call("GET", `loads/${id}`),

  /**
   * @param {number} id
   * @param {"cancel" | "resume"} what
   * @returns {Promise<LoadDetail>}
   */
  changeLoad: (id, what) => call("POST", `loads/${id}/${what}`),

  /** @returns {Promise<{items: CollectionSummary[]}>} */
  collections: () => call("GET", "collections"),

  /**
   * @param {string} name
   * @returns {Promise<CollectionDetail>}
   */
  collection: (name) => call("GET", `collections/${encodeURIComponent(name)}`),

  /**
   * @param {string} name
   * @returns {Promise<CollectionDetail>}
   */
  makeCollection: (name) => call("POST", "collections", { json: { name } }),

  /** @param {string} name */
  dropCollection: (name) => call("DELETE", `collections/${encodeURIComponent(name)}`),
};

/**
 * The smallest thumbnail that fills so many pixels of the screen.
 * @param {number} id
 * @param {number} side in CSS pixels
 */
export function thumbnailUrl(id, side) {
  const pixels = side * Math.min(window.devicePixelRatio || 1, 2);
  const size = [128, 256, 512, 1024].find((each) => each >= pixels * 0.9) ?? 1024;
  return apiUrl(`images/${id}/thumbnail`, { size });
}

/** @param {number} id */
export function fileUrl(id) {
  return apiUrl(`images/${id}/file`);
}

/** @param {string} id */
export function queryFileUrl(id) {
  return apiUrl(`queries/${id}/file`);
}
