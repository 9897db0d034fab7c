/** A photo in detail: a dialog over whatever view it was opened from. */

import { api, fileUrl, isAborted, thumbnailUrl } from "./api.js";
import { button, fill, h, icon, uniqueId } from "./dom.js";
import * as format from "./format.js";
import { errorPanel } from "./notices.js";
import { Stage } from "./stage.js";
import { thumbnail } from "./tiles.js";

/** @typedef {import("./api.js").ImageDetail} ImageDetail */
/** @typedef {import("./app.js").App} App */

const LARGE = 1024;
const STRIP_SIDE = 120;

export class Viewer {
  /**
   * @param {App} app
   * @param {() => import("./grid.js").PhotoGrid<any> | null} grid it leads through, if there is one
   */
  constructor(app, grid) {
    this.app = app;
    this.grid = grid;
    /** @type {number | null} */
    this.id = null;
    /** @type {AbortController | null} */
    this.pending = null;
    this.stage = new Stage((_, object) => this.#outline(object));
    const titleId = uniqueId();
    this.title = h("h2", { id: titleId, tabindex: "-1" });
    this.details = h("div", { class: "details" });
    this.before = this.#step("before", "Previous photo", -1);
    this.after = this.#step("after", "Next photo", 1);
    this.dialog = h(
      "dialog",
      {
        class: "viewer",
        "aria-labelledby": titleId,
        onclose: () => this.#onClose(),
        oncancel: (/** @type {Event} */ event) => {
          event.preventDefault();
          this.app.router.closePhoto();
        },
        onclick: (/** @type {MouseEvent} */ event) => {
          if (event.target === this.dialog) this.app.router.closePhoto();
        },
        onkeydown: (/** @type {KeyboardEvent} */ event) => this.#onKey(event),
      },
      h("div", { class: "viewer-photo" }, this.stage.element, this.before, this.after),
      h(
        "div",
        { class: "viewer-side" },
        h(
          "div",
          { class: "viewer-head" },
          this.title,
          h(
            "button",
            {
              type: "button",
              class: "button round",
              "aria-label": "Close",
              onclick: () => this.app.router.closePhoto(),
            },
            icon("close"),
          ),
        ),
        this.details,
      ),
    );
    document.body.append(this.dialog);
  }

  /** @param {number | null} id */
  show(id) {
    if (id === this.id) return;
    this.pending?.abort();
    this.id = id;
    if (id === null) {
      if (this.dialog.open) this.dialog.close();
      this.app.notices.surface();
      return;
    }
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.app.notices.surface();
      this.title.focus();
    }
    this.#load(id);
  }

  /** @param {number} id */
  async #load(id) {
    const pending = new AbortController();
    this.pending = pending;
    this.stage.clear();
    fill(this.title, "Photo");
    fill(this.details, h("p", { class: "quiet" }, "One moment …"));
    this.#showSteps(id);
    this.grid()
      ?.approach(id)
      .then(() => {
        if (this.id === id) this.#showSteps(id);
      });
    this.stage.showPhoto(thumbnailUrl(id, LARGE), "");
    try {
      const image = await api.image(id, pending.signal);
      this.#showImage(image, pending.signal);
    } catch (error) {
      if (!isAborted(error))
        fill(
          this.details,
          errorPanel(error, () => this.#load(id)),
        );
    }
  }

  /** @param {number} id */
  #showSteps(id) {
    for (const [step, direction] of /** @type {const} */ ([
      [this.before, -1],
      [this.after, 1],
    ])) {
      const there = (this.grid()?.neighbour(id, direction) ?? null) !== null;
      if (!there && step === document.activeElement) this.title.focus();
      step.hidden = !there;
    }
  }

  /** @param {ImageDetail} image @param {AbortSignal} signal */
  #showImage(image, signal) {
    const name = format.basename(image.path);
    fill(this.title, name);
    this.stage.showPhoto(thumbnailUrl(image.id, LARGE), name);
    if (image.state === "indexed") {
      this.stage.showObjects(image.width, image.height, image.objects);
      if (Math.max(image.width, image.height) > LARGE) this.#sharpen(image, signal);
    }
    const duplicates = h("section", { class: "duplicates", hidden: true });
    fill(
      this.details,
      image.state === "failed" &&
        h(
          "div",
          { class: "panel error" },
          icon("broken"),
          h("div", {}, h("h3", {}, "It is not indexed"), h("p", {}, image.error)),
        ),
      image.state === "indexed" && this.#objects(image),
      duplicates,
      this.#facts(image),
      h(
        "p",
        { class: "actions" },
        image.state === "indexed" &&
          h(
            "a",
            { class: "button primary", href: this.#search({ image: image.id }) },
            icon("search"),
            h("span", {}, "Search with this photo"),
          ),
        h(
          "a",
          { class: "button", href: fileUrl(image.id), target: "_blank", rel: "noopener" },
          icon("open"),
          h("span", {}, "Open the file"),
        ),
        button("trash", "Delete", () => this.app.deletePhoto(image), { class: "button danger" }),
      ),
    );
    if (image.state === "indexed") this.#showDuplicates(image, duplicates, signal);
    this.app.notices.say(
      image.state === "failed"
        ? `${name}, not indexed`
        : `${name}, ${format.many(image.objects.length, "object")}`,
    );
  }

  /**
   * The file itself takes the thumbnail's place once it is there.
   * @param {ImageDetail} image
   * @param {AbortSignal} signal
   */
  #sharpen(image, signal) {
    const full = new Image();
    full.onload = () => {
      if (!signal.aborted) this.stage.showPhoto(full.src, format.basename(image.path));
    };
    full.src = fileUrl(image.id);
    signal.addEventListener("abort", () => {
      full.src = "";
    });
  }

  /** @param {ImageDetail} image */
  #objects(image) {
    return h(
      "section",
      {},
      h("h3", {}, format.many(image.objects.length, "object")),
      h(
        "ul",
        { class: "objects" },
        image.objects.map((object) =>
          h(
            "li",
            {},
            h(
              "a",
              { href: this.#search({ like: object.id }) },
              h("span", { class: "name" }, format.labelName(object.label)),
              h("span", { class: "count" }, format.score(object.score)),
              h("span", { class: "more" }, "More like this"),
            ),
          ),
        ),
      ),
    );
  }

  /** @param {import("./api.js").Detection} object */
  #outline(object) {
    const id = /** @type {import("./api.js").ObjectDetail} */ (object).id;
    const name = format.labelName(object.label);
    return h("a", {
      href: this.#search({ like: id }),
      title: `More like this ${name}`,
      "aria-label": `More like this: ${name}, ${format.score(object.score)}`,
    });
  }

  /** @param {ImageDetail} image */
  #facts(image) {
    /** @type {[string, string][]} */
    const facts = [
      ["Path", image.path],
      ["Size", image.width > 0 ? `${image.width} × ${image.height} pixels` : "not known"],
      ["File", image.bytes > 0 ? format.size(image.bytes) : "could not be read"],
      ["Collection", image.collection],
    ];
    return h(
      "section",
      {},
      h("h3", {}, "File"),
      h(
        "dl",
        {},
        facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
      ),
    );
  }

  /**
   * @param {ImageDetail} image
   * @param {HTMLElement} section
   * @param {AbortSignal} signal
   */
  async #showDuplicates(image, section, signal) {
    let found;
    try {
      found = await api.duplicates(image.id, signal);
    } catch (error) {
      if (isAborted(error)) return;
      section.hidden = false;
      fill(
        section,
        h("h3", {}, "Near-duplicates"),
        errorPanel(error, () => this.#showDuplicates(image, section, signal)),
      );
      return;
    }
    section.hidden = found.items.length === 0;
    fill(
      section,
      h("h3", {}, format.many(found.items.length, "near-duplicate")),
      h(
        "ul",
        { class: "strip" },
        found.items.map(({ image: twin, exact }) =>
          h(
            "li",
            {},
            h(
              "a",
              { class: "tile", href: this.app.router.href({ photo: twin.id }) },
              thumbnail(twin, STRIP_SIDE),
              h("span", { class: "caption" }, exact ? "same file" : "looks the same"),
            ),
          ),
        ),
      ),
    );
  }

  /** @param {Partial<import("./router.js").State>} changes */
  #search(changes) {
    return this.app.router.fresh(changes);
  }

  /** @param {string} symbol @param {string} label @param {1 | -1} direction */
  #step(symbol, label, direction) {
    return h(
      "button",
      {
        type: "button",
        class: `button round step ${symbol}`,
        "aria-label": label,
        onclick: () => this.#go(direction),
      },
      icon(symbol),
    );
  }

  /** @param {1 | -1} direction */
  #go(direction) {
    const next = this.id === null ? null : this.grid()?.neighbour(this.id, direction);
    if (next) this.app.router.openPhoto(next.id, { replace: true });
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "ArrowLeft") this.#go(-1);
    else if (event.key === "ArrowRight") this.#go(1);
    else if (event.key === "Delete") {
      this.details.querySelector(/** @type {"button"} */ ("button.danger"))?.click();
    }
  }

  #onClose() {
    // Not by show(): a browser may close a dialog by itself.
    if (this.id !== null) this.app.router.closePhoto();
  }
}
