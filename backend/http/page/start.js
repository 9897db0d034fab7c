/** Where a search starts: a photo is dropped, pasted, chosen, or given by its address. */

import { ApiError, api } from "./api.js";
import { button, fill, h, icon, uniqueId } from "./dom.js";
import { emptyState, errorPanel } from "./notices.js";
import { thumbnail } from "./tiles.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./search.js").SearchView} SearchView */

const SAMPLES = 8;
const SAMPLE_SIDE = 150;

export class StartPanel {
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
    this.message = h("div", { class: "message" });
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
              `Collection ‘${collection}’ is empty. Load a folder, or send photos of this device.`,
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
