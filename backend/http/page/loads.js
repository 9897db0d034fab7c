/** Photos in: a folder of the server, files of this device, and how far they have come. */

import { ApiError, api, apiUrl } from "./api.js";
import { append, button, fill, h, icon, setStyle, uniqueId } from "./dom.js";
import * as format from "./format.js";
import { errorPanel } from "./notices.js";
import { Upload } from "./uploads.js";

/** @typedef {import("./api.js").LoadDetail} LoadDetail */
/** @typedef {import("./app.js").App} App */
/** @typedef {import("./uploads.js").Failure} Failure */

const PAGE = 20;
/** Browsers open six connections to a server; streams must leave some. */
const FOLLOWED = 3;
const ASK_AGAIN_MS = 5000;

const STATES = { running: "Loading", done: "Done", failed: "Failed", cancelled: "Cancelled" };
const SYMBOLS = { running: "clock", done: "check", failed: "alert", cancelled: "close" };

export class LoadsView {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.title = "Add photos";
    /** @type {Map<number, LoadCard>} */
    this.cards = new Map();
    /** @type {string | null} */
    this.next = null;
    this.heading = h("h1", { tabindex: "-1" }, "Add photos");
    this.into = h("p", { class: "quiet" });
    this.folderError = h("div", { class: "message" });
    this.uploads = h("div", { class: "cards" });
    this.list = h("div", { class: "cards" });
    this.message = h("div", { class: "message" });
    this.moreButton = button(null, "Earlier loads", () => this.#list(this.next), { hidden: true });

    const folderId = uniqueId();
    const hintId = uniqueId();
    this.folder = h("input", {
      id: folderId,
      required: true,
      autocomplete: "off",
      spellcheck: "false",
      autocapitalize: "off",
      placeholder: "/photos/2024",
      "aria-describedby": hintId,
    });
    this.prune = h("input", { type: "checkbox" });
    const form = h(
      "form",
      {
        class: "panel",
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          this.#start(this.folder.value.trim(), this.app.collection, this.prune.checked);
        },
      },
      h("h2", {}, icon("folder"), "A folder on the server"),
      h("label", { for: folderId }, "Folder"),
      h(
        "div",
        { class: "joined" },
        this.folder,
        h("button", { type: "submit", class: "button primary" }, "Load"),
      ),
      h(
        "p",
        { class: "quiet", id: hintId },
        "All photos in it and below are found. What is loaded already is not loaded again.",
      ),
      h(
        "label",
        { class: "check" },
        this.prune,
        h("span", {}, "Afterwards, forget photos that are gone from the folder"),
      ),
      this.folderError,
    );

    this.files = this.#picker("Photos of this device", { accept: "image/*" });
    this.directory = this.#picker("A folder of this device", { webkitdirectory: true });
    this.drop = h(
      "div",
      { class: "panel dropzone small" },
      h("h2", {}, icon("device"), "Photos from this device"),
      h("p", { class: "quiet" }, "Drop files here, or"),
      h(
        "p",
        { class: "actions" },
        button("photo", "Choose files", () => this.files.click(), { class: "button primary" }),
        button("folder", "Choose a folder", () => this.directory.click()),
      ),
      this.files,
      this.directory,
    );
    this.element = h(
      "div",
      { class: "loads" },
      h("header", {}, this.heading, this.into),
      h("div", { class: "two" }, form, this.drop),
      this.uploads,
      h(
        "section",
        { "aria-labelledby": "loads-title" },
        h("h2", { id: "loads-title" }, "Loads"),
        this.message,
        this.list,
        this.moreButton,
      ),
    );
  }

  show() {
    fill(this.into, "They go into collection ‘", h("strong", {}, this.app.collection), "’.");
    fill(this.folderError);
    this.#list(null);
  }

  /** What runs is followed still: the other views want to know when it ends. */
  hide() {}

  /** @param {string} label @param {Record<string, string | boolean>} attributes */
  #picker(label, attributes) {
    const input = h("input", {
      type: "file",
      multiple: true,
      class: "hidden",
      tabindex: "-1",
      "aria-label": label,
      ...attributes,
      onchange: () => {
        this.upload([...(input.files ?? [])]);
        input.value = "";
      },
    });
    return input;
  }

  /** @param {string} folder @param {string} collection @param {boolean} prune */
  async #start(folder, collection, prune) {
    fill(this.folderError);
    try {
      const load = await api.load(folder, collection, prune);
      if (this.folder.value.trim() === folder) this.folder.value = "";
      this.app.notices.say(`Loading ${load.folder}`);
      if (collection !== this.app.collection) return;
      fill(this.message);
      this.#add(load, true);
      this.#follow();
    } catch (error) {
      fill(
        this.folderError,
        errorPanel(error, () => this.#start(folder, collection, prune)),
      );
    }
  }

  /** @param {string | null} cursor */
  async #list(cursor) {
    const { collection } = this.app;
    try {
      const page = await api.loads({ collection, limit: PAGE, cursor });
      if (collection !== this.app.collection) return;
      if (cursor === null) {
        const newest = Math.max(0, ...page.items.map(({ id }) => id));
        for (const [id, card] of this.cards) {
          // One that was started while the list was on its way stays.
          if (id > newest && card.load.collection === collection) continue;
          card.remove();
          this.cards.delete(id);
        }
      }
      for (const load of page.items) this.#add(load, false);
      this.next = page.next_cursor;
      this.moreButton.hidden = page.next_cursor === null;
      fill(
        this.message,
        this.cards.size === 0 &&
          h("p", { class: "quiet" }, "None so far: name a folder above, or drop photos."),
      );
      this.#follow();
    } catch (error) {
      fill(
        this.message,
        errorPanel(error, () => this.#list(cursor)),
      );
    }
  }

  /** @param {LoadDetail} load @param {boolean} first */
  #add(load, first) {
    this.cards.get(load.id)?.remove();
    const card = new LoadCard(this.app, load, () => this.#follow());
    this.cards.set(load.id, card);
    if (first) this.list.prepend(card.element);
    else this.list.append(card.element);
  }

  /** Watches the newest of those that run. */
  #follow() {
    const running = [...this.cards.values()]
      .filter((card) => card.load.state === "running")
      .sort((a, b) => b.load.id - a.load.id);
    running.forEach((card, i) => {
      if (i < FOLLOWED) card.follow();
      else card.unfollow();
    });
  }

  /**
   * Sends photos of this device.
   * @param {File[]} files
   */
  upload(files) {
    const photos = files.filter((file) => file.type === "" || file.type.startsWith("image/"));
    const others = files.length - photos.length;
    if (others > 0) {
      const are = others === 1 ? "is no photo" : "are no photos";
      this.app.notices.toast(`${format.many(others, "file")} ${are}: not sent.`, "alert");
    }
    if (photos.length === 0) return;
    const { collection } = this.app;
    const card = new UploadCard(photos, collection, this.app.info?.max_upload_bytes ?? Infinity);
    this.uploads.prepend(card.element);
    this.app.notices.say(`Sending ${format.many(photos.length, "photo")}`);
    // Who leaves the page is asked first: what is not sent yet would not be.
    const warn = (/** @type {Event} */ event) => event.preventDefault();
    addEventListener("beforeunload", warn);
    card.upload.finished.then(() => {
      removeEventListener("beforeunload", warn);
      this.app.contentsChanged();
      const { added, failures } = card.upload;
      this.app.notices.say(
        `${format.many(added, "photo")} added, ${format.number(failures.length)} failed`,
      );
    });
  }
}

/** One folder's progress. */
class LoadCard {
  /** @param {App} app @param {LoadDetail} load @param {() => void} onChange of what runs */
  constructor(app, load, onChange) {
    this.app = app;
    this.load = load;
    this.onChange = onChange;
    /** @type {EventSource | null} */
    this.source = null;
    /** Of the timer after which the service is asked again; 0: none. */
    this.again = 0;
    /** Whether the service does not answer. */
    this.away = false;
    this.progress = new Progress(load.folder);
    this.error = h("div", { class: "message" });
    this.element = h("article", { class: "panel load" }, this.progress.element, this.error);
    this.#show();
  }

  remove() {
    this.unfollow();
    this.element.remove();
  }

  /** Has the server tell of each change. */
  follow() {
    if (this.source || this.again) return;
    const source = new EventSource(apiUrl(`loads/${this.load.id}/events`));
    this.source = source;
    let answered = false;
    source.addEventListener("open", () => {
      answered = true;
    });
    source.addEventListener("progress", (event) => this.#take(JSON.parse(event.data)));
    source.addEventListener("end", (event) => this.#take(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      if (this.source !== source) return;
      // The browser asks again by itself, unless the answer was a refusal. An end of what was
      // answered says nothing yet.
      const refused = source.readyState === EventSource.CLOSED;
      if (refused || !answered) {
        this.away = true;
        this.#show();
      }
      answered = false;
      if (refused) this.#askLater();
    });
  }

  unfollow() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.again);
    this.again = 0;
  }

  /** @param {LoadDetail} load as it is now */
  #take(load) {
    const ended = this.load.state === "running" && load.state !== "running";
    this.load = load;
    this.away = false;
    if (ended) this.unfollow();
    this.#show();
    if (!ended) return;
    this.app.contentsChanged();
    const { counts, folder, state } = load;
    this.app.notices.say(
      `${STATES[state]}: ${folder}, ${format.many(counts.indexed, "photo")}` +
        ` added, ${format.number(counts.failed)} failed`,
    );
    this.onChange();
  }

  /** While the service starts, it refuses. */
  #askLater() {
    this.unfollow();
    const timer = setTimeout(async () => {
      try {
        const load = await api.loadDetail(this.load.id);
        if (this.again !== timer) return; // it is followed no more
        this.again = 0;
        this.#take(load);
        this.onChange();
      } catch (error) {
        if (this.again !== timer) return;
        if (error instanceof ApiError && error.passing) this.#askLater();
        else {
          this.away = false;
          this.#show();
          fill(this.error, errorPanel(error, null));
        }
      }
    }, ASK_AGAIN_MS);
    this.again = timer;
  }

  /** @param {"cancel" | "resume"} what */
  async #change(what) {
    fill(this.error);
    try {
      this.load = await api.changeLoad(this.load.id, what);
      this.away = false;
      if (this.load.state !== "running") this.unfollow();
      this.#show();
      this.onChange();
    } catch (error) {
      fill(
        this.error,
        errorPanel(error, () => this.#change(what)),
      );
    }
  }

  async #showFailures() {
    try {
      this.load = await api.loadDetail(this.load.id);
      this.#show();
    } catch (error) {
      fill(
        this.error,
        errorPanel(error, () => this.#showFailures()),
      );
    }
  }

  #show() {
    const { load } = this;
    const { counts } = load;
    const running = load.state === "running";
    /** @type {string[]} */
    const facts = [`${format.number(counts.indexed)} added`];
    if (counts.unchanged > 0) facts.push(`${format.number(counts.unchanged)} unchanged`);
    if (counts.removed > 0) facts.push(`${format.number(counts.removed)} forgotten`);
    if (counts.passed_over > 0)
      facts.push(`${format.many(counts.passed_over, "other file")} passed over`);
    facts.push(format.many(counts.objects, "object"));
    this.progress.show({
      state: load.state,
      note: !running
        ? format.time(load.finished_at ?? load.started_at)
        : this.away
          ? "The service does not answer: it is asked again"
          : load.waiting_for
            ? `Waiting for ${load.waiting_for}: it goes on by itself`
            : "",
      processed: counts.processed,
      total: counts.total,
      rate: running ? load.photos_per_second : null,
      left: running ? load.seconds_left : null,
      facts,
      failed: counts.failed,
      failures: load.failures,
      allFailures: this.app.router.fresh({
        view: "photos",
        shown: "failed",
        collection: load.collection,
      }),
      error: load.error,
      onFailures: load.failures.length === 0 && !running ? () => this.#showFailures() : null,
      action: running
        ? ["close", "Cancel", () => this.#change("cancel")]
        : ["retry", load.state === "done" ? "Load again" : "Resume", () => this.#change("resume")],
    });
  }
}

/** The progress of photos that this browser sends. */
class UploadCard {
  /** @param {File[]} files @param {string} collection @param {number} maxBytes */
  constructor(files, collection, maxBytes) {
    this.progress = new Progress(`${format.many(files.length, "photo")} from this device`);
    this.element = h("article", { class: "panel load" }, this.progress.element);
    this.upload = new Upload(files, collection, maxBytes, () => this.#show());
    this.#show();
  }

  #show() {
    const { upload } = this;
    if (!upload) return; // before it is made
    const running = upload.state === "running";
    const facts = [`${format.number(upload.added)} added`];
    if (upload.known > 0) facts.push(`${format.number(upload.known)} were there before`);
    this.progress.show({
      state: upload.state,
      note: upload.waiting
        ? `${upload.waiting} It goes on by itself.`
        : running
          ? ""
          : `in ‘${upload.collection}’`,
      processed: upload.processed,
      total: upload.total,
      rate: running && upload.processed > 0 ? upload.rate : null,
      left:
        running && upload.processed > 0 ? (upload.total - upload.processed) / upload.rate : null,
      facts,
      failed: upload.failures.length,
      failures: upload.failures,
      allFailures: null,
      error: null,
      onFailures: null,
      action: running ? ["close", "Cancel", () => upload.cancel()] : null,
    });
  }
}

/**
 * @typedef {object} Shown
 * @property {LoadDetail["state"]} state
 * @property {string} note
 * @property {number} processed
 * @property {number} total
 * @property {number | null} rate
 * @property {number | null} left
 * @property {string[]} facts
 * @property {number} failed
 * @property {Failure[]} failures those whose reasons are known here
 * @property {string | null} allFailures where the others are listed
 * @property {string | null} error
 * @property {(() => void) | null} onFailures asks for the reasons, which are not there yet
 * @property {[string, string, () => void] | null} action
 */

/** A bar, what it stands for, and what has failed. Parts are changed in place: focus stays. */
class Progress {
  /** @param {string} name */
  constructor(name) {
    this.state = h("span", { class: "state" });
    this.action = h("div", {});
    this.actionName = "";
    this.run = () => {};
    this.fillBar = h("span", {});
    this.bar = h(
      "div",
      {
        class: "progress",
        role: "progressbar",
        "aria-label": name,
        "aria-valuemin": "0",
        "aria-valuemax": "100",
      },
      this.fillBar,
    );
    this.figures = h("p", { class: "figures" });
    this.facts = h("p", { class: "quiet" });
    this.error = h("p", { class: "bad" });
    this.summary = h("summary", {});
    this.reasons = h("ul", { class: "failures" });
    this.reasonsShown = 0;
    this.otherReasons = h("a", {}, "All photos that failed, with reasons");
    this.onFailures = /** @type {(() => void) | null} */ (null);
    this.failures = h(
      "details",
      {
        hidden: true,
        ontoggle: () => {
          if (this.failures.open) this.onFailures?.();
        },
      },
      this.summary,
      this.reasons,
      h("p", {}, this.otherReasons),
    );
    this.element = h(
      "div",
      {},
      h("header", {}, h("h3", {}, name), this.state, this.action),
      this.bar,
      this.figures,
      this.facts,
      this.error,
      this.failures,
    );
  }

  /** @param {Shown} shown */
  show(shown) {
    const part = shown.total > 0 ? shown.processed / shown.total : shown.state === "done" ? 1 : 0;
    this.element.dataset.state = shown.state;
    fill(this.state, icon(SYMBOLS[shown.state]), STATES[shown.state]);
    setStyle(this.fillBar, { transform: `scaleX(${part})` });
    this.bar.setAttribute("aria-valuenow", String(Math.round(part * 100)));
    this.bar.hidden = shown.state === "done";
    const figures = [`${format.number(shown.processed)} of ${format.many(shown.total, "photo")}`];
    if (shown.rate !== null) figures.push(`${format.decimal(shown.rate)} a second`);
    if (shown.left !== null) figures.push(`${format.duration(shown.left)} left`);
    if (shown.note) figures.push(shown.note);
    fill(this.figures, figures.join(" · "));
    fill(this.facts, shown.facts.join(" · "));
    fill(this.error, shown.error);
    this.error.hidden = !shown.error;
    this.#showFailures(shown);
    const [symbol, text, run] = shown.action ?? ["", "", () => {}];
    this.run = run;
    if (text !== this.actionName) {
      const focused = this.action.contains(document.activeElement);
      this.actionName = text;
      fill(this.action, text && button(symbol, text, () => this.run(), { class: "button small" }));
      if (focused) this.action.querySelector("button")?.focus();
    }
  }

  /** @param {Shown} shown */
  #showFailures({ failed, failures, allFailures, onFailures }) {
    this.failures.hidden = failed === 0;
    // A load that another process has run, or an earlier one, has left its count only.
    this.otherReasons.hidden = allFailures === null || failures.length >= failed;
    if (allFailures) this.otherReasons.href = allFailures;
    this.onFailures = onFailures;
    fill(this.summary, `${format.many(failed, "photo")} failed`);
    if (this.reasonsShown > failures.length) {
      fill(this.reasons);
      this.reasonsShown = 0;
    }
    append(
      this.reasons,
      failures
        .slice(this.reasonsShown)
        .map(({ path, reason }) =>
          h("li", {}, h("strong", { title: path }, format.basename(path)), h("span", {}, reason)),
        ),
    );
    this.reasonsShown = failures.length;
  }
}
