/** Collections: choose one, make one, look into one, drop one. */

import { api } from "./api.js";
import { button, fill, h, icon, setStyle, uniqueId } from "./dom.js";
import * as format from "./format.js";
import { errorPanel, sentence } from "./notices.js";

/** @typedef {import("./api.js").CollectionSummary} CollectionSummary */
/** @typedef {import("./api.js").CollectionDetail} CollectionDetail */
/** @typedef {import("./app.js").App} App */

const TOP_LABELS = 10;

export class CollectionsView {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.title = "Collections";
    /** @type {HTMLDialogElement | null} the question whether to drop one */
    this.question = null;
    this.heading = h("h1", { tabindex: "-1" }, "Collections");
    this.message = h("div", { class: "message" });
    this.list = h("div", { class: "collections" });
    this.makeError = h("div", { class: "message" });
    const id = uniqueId();
    const hintId = uniqueId();
    this.name = h("input", {
      id,
      required: true,
      maxlength: 200,
      pattern: "[A-Za-z_][A-Za-z0-9_]*",
      title: "Letters, digits and _, not beginning with a digit",
      autocomplete: "off",
      spellcheck: "false",
      autocapitalize: "off",
      "aria-describedby": hintId,
    });
    this.element = h(
      "div",
      { class: "collections-view" },
      h(
        "header",
        {},
        this.heading,
        h("p", { class: "quiet" }, "Each holds its own photos, and a search looks into one."),
      ),
      h(
        "form",
        {
          class: "panel make",
          onsubmit: (/** @type {Event} */ event) => {
            event.preventDefault();
            this.#make();
          },
        },
        h("label", { for: id }, "New collection"),
        h(
          "div",
          { class: "joined" },
          this.name,
          h("button", { type: "submit", class: "button primary" }, "Create"),
        ),
        h("p", { class: "quiet", id: hintId }, "Letters, digits and _"),
        this.makeError,
      ),
      this.message,
      this.list,
    );
  }

  show() {
    this.question?.close();
    this.#list();
  }

  hide() {
    this.question?.close();
  }

  async #list() {
    try {
      const items = await this.app.refreshCollections();
      fill(
        this.message,
        items.length === 0 &&
          h("p", { class: "quiet" }, "None yet: create one above, or load photos and it is made."),
      );
      fill(
        this.list,
        items.map((each) => this.#card(each)),
      );
    } catch (error) {
      fill(
        this.message,
        errorPanel(error, () => this.#list()),
      );
    }
  }

  async #make() {
    const name = this.name.value.trim();
    fill(this.makeError);
    try {
      await api.makeCollection(name);
      this.name.value = "";
      this.app.notices.toast(`Collection ‘${name}’ is there.`);
      await this.#list();
    } catch (error) {
      fill(this.makeError, errorPanel(error, null));
    }
  }

  /** @param {CollectionSummary} summary */
  #card(summary) {
    const { name } = summary;
    const current = name === this.app.collection;
    const inside = h("div", { class: "inside" });
    const toggle = h(
      "details",
      {
        ontoggle: () => {
          if (toggle.open && inside.childElementCount === 0) this.#look(name, inside);
        },
      },
      h("summary", {}, "What is in it"),
      inside,
    );
    const to = (/** @type {Partial<import("./router.js").State>} */ changes) =>
      this.app.router.fresh({ collection: name, ...changes });
    return h(
      "article",
      { class: `panel collection${current ? " current" : ""}`, "data-name": name },
      h(
        "header",
        {},
        h("h2", {}, name),
        current && h("span", { class: "badge" }, icon("check"), "In use"),
      ),
      h(
        "p",
        {},
        h("strong", {}, format.many(summary.images, "photo")),
        summary.failed > 0 && [
          " · ",
          h(
            "a",
            { href: to({ view: "photos", shown: "failed" }) },
            `${format.number(summary.failed)} failed`,
          ),
        ],
      ),
      h(
        "p",
        { class: "quiet" },
        `${summary.embedder}, ${format.number(summary.dimension)} dimensions`,
      ),
      !summary.compatible &&
        h(
          "p",
          { class: "bad" },
          icon("alert"),
          "Another embedder has filled it: it can be looked at, not searched. `check --repair` embeds it anew.",
        ),
      toggle,
      h(
        "p",
        { class: "actions" },
        !current &&
          h(
            "a",
            {
              class: "button small primary",
              href: to({ view: "collections" }),
              "aria-label": `Use ${name}`,
            },
            "Use",
          ),
        h(
          "a",
          {
            class: "button small",
            href: to({ view: "search" }),
            "aria-label": `Search in ${name}`,
          },
          icon("search"),
          h("span", {}, "Search"),
        ),
        h(
          "a",
          {
            class: "button small",
            href: to({ view: "photos" }),
            "aria-label": `Photos of ${name}`,
          },
          icon("photo"),
          h("span", {}, "Photos"),
        ),
        button("trash", "Drop …", () => this.#confirmDrop(summary), {
          class: "button small danger",
          "aria-label": `Drop ${name} …`,
        }),
      ),
    );
  }

  /** @param {string} name @param {HTMLElement} inside */
  async #look(name, inside) {
    fill(inside, h("p", { class: "quiet" }, "One moment …"));
    try {
      const detail = await api.collection(name);
      const most = Math.max(1, ...detail.labels.map(({ objects }) => objects));
      const shown = detail.labels.slice(0, TOP_LABELS);
      fill(
        inside,
        h(
          "p",
          {},
          format.many(detail.objects, "object"),
          detail.labels.length > shown.length &&
            `, the ${shown.length} most frequent of ${detail.labels.length} labels:`,
        ),
        h(
          "ul",
          { class: "bars" },
          shown.map(({ label, objects }) => {
            const bar = h("span", { class: "bar-fill" });
            setStyle(bar, { width: `${(objects / most) * 100}%` });
            return h(
              "li",
              {},
              h(
                "a",
                {
                  href: this.app.router.fresh({ collection: name, view: "photos", label: [label] }),
                },
                h("span", { class: "name" }, format.labelName(label)),
                h("span", { class: "track" }, bar),
                h("span", { class: "count" }, format.number(objects)),
              ),
            );
          }),
        ),
      );
    } catch (error) {
      fill(
        inside,
        errorPanel(error, () => this.#look(name, inside)),
      );
    }
  }

  /** @param {CollectionSummary} summary */
  #confirmDrop({ name, images, failed }) {
    const titleId = uniqueId();
    const inputId = uniqueId();
    const problem = h("div", {});
    const drop = h(
      "button",
      { type: "submit", class: "button danger solid", disabled: true },
      "Drop it",
    );
    const input = h("input", {
      id: inputId,
      autocomplete: "off",
      spellcheck: "false",
      autocapitalize: "off",
      oninput: () => {
        drop.disabled = input.value !== name;
      },
    });
    const dialog = h(
      "dialog",
      {
        class: "confirm",
        "aria-labelledby": titleId,
        onclose: () => {
          this.app.notices.surface(); // they are not to go with the dialog
          dialog.remove();
        },
      },
      h(
        "form",
        {
          onsubmit: async (/** @type {Event} */ event) => {
            event.preventDefault();
            if (input.value !== name) return;
            drop.disabled = true;
            try {
              await api.dropCollection(name);
              dialog.close();
              this.#dropped(name);
            } catch (error) {
              drop.disabled = false;
              if (dialog.open) fill(problem, errorPanel(error, null));
              else {
                this.app.notices.toast(`‘${name}’ is still there. ${sentence(error)}`, "alert");
              }
            }
          },
        },
        h("h2", { id: titleId }, `Drop ‘${name}’?`),
        h(
          "p",
          {},
          `The service forgets its ${format.many(images + failed, "photo")}, and deletes` +
            " those that were sent to it. Files in folders stay. This cannot be undone.",
        ),
        h("label", { for: inputId }, "Type the collection’s name to confirm"),
        input,
        problem,
        h(
          "p",
          { class: "actions" },
          button(null, "Keep it", () => dialog.close()),
          drop,
        ),
      ),
    );
    this.question = dialog;
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  }

  /** @param {string} name */
  async #dropped(name) {
    this.app.notices.toast(`Collection ‘${name}’ is gone.`);
    this.app.contentsChanged();
    if (this.app.router.state.collection === name) {
      this.app.router.open(this.app.router.fresh({ view: "collections", collection: null }));
    } else await this.#list();
    this.heading.focus();
  }
}
