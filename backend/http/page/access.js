/**
 * The API key that the service may demand: asked for once, kept for this tab alone, and stood in
 * for by a session's cookie where the browser asks for images by itself.
 */

import { ApiError, api, useKey } from "./api.js";
import { fill, h, uniqueId } from "./dom.js";
import { errorPanel } from "./notices.js";

const STORED = "api-key";

export class Access {
  /** @param {HTMLElement} forget the button that forgets the key */
  constructor(forget) {
    this.forget = forget;
    /** Of the timer after which the session is begun anew. */
    this.timer = 0;
    /** When the session is to be begun anew. */
    this.due = Number.POSITIVE_INFINITY;
    /** @type {Promise<void> | null} while a key is asked for */
    this.asking = null;
    forget.addEventListener("click", () => this.#forget());
    document.addEventListener("visibilitychange", () => {
      // A device that has slept has let the timer sleep too.
      if (document.visibilityState === "visible" && Date.now() > this.due) this.#renew();
    });
  }

  /** Goes on with the key that this tab has, if it has one. */
  async start() {
    useKey(sessionStorage.getItem(STORED), () => this.#ask());
    if (sessionStorage.getItem(STORED) === null) return;
    try {
      await this.#begin();
    } catch (error) {
      if (!(error instanceof ApiError) || error.passing) throw error;
      sessionStorage.removeItem(STORED); // and is asked for when the first request is refused
      useKey(null, () => this.#ask());
    }
  }

  /** Begins a session, and again before its time is over. */
  async #begin() {
    const { seconds } = await api.beginSession();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#renew(), seconds * 500);
    this.due = Date.now() + seconds * 500;
    this.forget.hidden = false;
  }

  async #renew() {
    try {
      await this.#begin();
    } catch {
      this.timer = setTimeout(() => this.#renew(), 30_000);
    }
  }

  async #forget() {
    clearTimeout(this.timer);
    try {
      await api.endSession();
    } catch {
      // It ends by itself.
    }
    sessionStorage.removeItem(STORED);
    location.reload();
  }

  /** @returns {Promise<void>} when there is a key that the service takes */
  #ask() {
    this.asking ??= this.#askOnce().finally(() => {
      this.asking = null;
    });
    return this.asking;
  }

  /** @returns {Promise<void>} */
  #askOnce() {
    return new Promise((resolve) => {
      const titleId = uniqueId();
      const inputId = uniqueId();
      const problem = h("div", {});
      const input = h("input", {
        id: inputId,
        type: "password",
        required: true,
        pattern: "\\s*isk_[0-9a-f]{12}_[0-9A-Za-z_\\-]{43}\\s*",
        title: "It begins with isk_",
        autocomplete: "off",
        spellcheck: "false",
        autocapitalize: "off",
      });
      const submit = h("button", { type: "submit", class: "button primary" }, "Go on");
      const dialog = h(
        "dialog",
        {
          class: "confirm",
          "aria-labelledby": titleId,
          // There is nothing behind it to go back to.
          oncancel: (/** @type {Event} */ event) => event.preventDefault(),
        },
        h(
          "form",
          {
            onsubmit: async (/** @type {Event} */ event) => {
              event.preventDefault();
              submit.disabled = true;
              fill(problem);
              const key = input.value.trim();
              useKey(key, () => this.#ask());
              try {
                await this.#begin();
                sessionStorage.setItem(STORED, key);
                dialog.close();
                dialog.remove();
                resolve();
              } catch (error) {
                fill(problem, errorPanel(error, null));
                submit.disabled = false;
                input.select();
              }
            },
          },
          h("h2", { id: titleId }, "This service needs a key"),
          h("p", {}, "Whoever runs it can give you one. It is kept until this tab is closed."),
          h("label", { for: inputId }, "API key"),
          input,
          problem,
          h("p", { class: "actions" }, submit),
        ),
      );
      document.body.append(dialog);
      dialog.showModal();
      input.focus();
    });
  }
}
