/** What the page tells: errors with a way out, toasts, and words for screen readers. */

import { ApiError } from "./api.js";
import { append, button, fill, h, icon, isShown } from "./dom.js";

const TOAST_MS = 5000;
const TICK_MS = 100;
const AUTOMATIC_RETRY_SECONDS = 5;

/**
 * A sentence for people, whatever has gone wrong.
 * @param {unknown} error
 */
export function sentence(error) {
  if (error instanceof ApiError) return error.message;
  console.error(error);
  return "The page itself has failed. Reload it, please.";
}

/**
 * An error in words, with a way to try again; what may pass is tried again by itself, while
 * somebody sees it.
 * @param {unknown} error
 * @param {(() => void) | null} retry
 * @param {...import("./dom.js").Child} more other ways out
 */
export function errorPanel(error, retry, ...more) {
  const passing = error instanceof ApiError && error.passing;
  const busy = passing && error.busy;
  const panel = h(
    "div",
    { class: "panel error", role: "alert" },
    icon(busy ? "retry" : passing ? "offline" : "alert"),
    h(
      "div",
      {},
      h("h2", {}, busy ? "Busy just now" : passing ? "Not just now" : "That did not work"),
      h("p", {}, sentence(error)),
    ),
  );
  const actions = h("p", { class: "actions" });
  /** @type {number | undefined} */
  let timer;
  const stop = () => {
    clearInterval(timer);
    removeEventListener("online", again);
  };
  const again = () => {
    if (!isShown(panel)) return;
    stop();
    retry?.();
  };
  if (retry) actions.append(button("retry", "Try again", again, { class: "button primary" }));
  append(actions, more);
  if (retry && passing) {
    let left = Math.max(1, error.retryAfter ?? AUTOMATIC_RETRY_SECONDS);
    const countdown = h("span", { class: "quiet", "aria-live": "off" });
    actions.append(countdown);
    const show = () => fill(countdown, `Asking again in ${left} s`);
    show();
    timer = setInterval(() => {
      if (!panel.isConnected) stop();
      else if (--left > 0) show();
      else if (document.visibilityState === "visible") again();
    }, 1000);
    addEventListener("online", again);
  }
  panel.lastElementChild?.append(actions);
  return panel;
}

/**
 * What to do where there is nothing to show.
 * @param {string} symbol
 * @param {string} title
 * @param {string} text
 * @param {...import("./dom.js").Child} actions
 */
export function emptyState(symbol, title, text, ...actions) {
  return h(
    "div",
    { class: "panel empty" },
    icon(symbol),
    h("h2", {}, title),
    h("p", {}, text),
    h("p", { class: "actions" }, actions),
  );
}

export class Notices {
  /**
   * @param {HTMLElement} toasts where toasts appear
   * @param {HTMLElement} spoken what screen readers are told
   */
  constructor(toasts, spoken) {
    this.toasts = toasts;
    this.spoken = spoken;
    /** @type {(() => void)[]} what can be taken back, the latest last */
    this.undos = [];
    addEventListener("keydown", (event) => {
      const typing = event.target instanceof HTMLInputElement;
      const undoLast = this.undos[this.undos.length - 1];
      if (event.key === "z" && (event.ctrlKey || event.metaKey) && !typing && undoLast) {
        event.preventDefault();
        undoLast();
      }
    });
  }

  /**
   * Has screen readers say something.
   * @param {string} text
   */
  say(text) {
    // The same words again are news too.
    fill(this.spoken);
    setTimeout(() => fill(this.spoken, text), 50);
  }

  /**
   * A few words, shown and spoken, that go by themselves.
   * @param {string} text
   * @param {string} [symbol]
   */
  toast(text, symbol = "check") {
    const element = h("div", { class: "toast" }, icon(symbol), h("span", {}, text));
    this.#add(element);
    this.say(text);
    this.#after(TOAST_MS, element, () => element.remove());
  }

  /**
   * Announces what is about to be done, and does it unless it is undone.
   * The time stands still while somebody points at the toast or is in it.
   * @param {string} text
   * @param {{act: () => void, undo: () => void}} what
   */
  undoable(text, { act, undo }) {
    const bar = h("span", { class: "countdown" });
    const element = h("div", { class: "toast" }, icon("trash"), h("span", {}, text));
    let over = false;
    const finish = (/** @type {() => void} */ then) => {
      if (over) return;
      over = true;
      this.undos = this.undos.filter((each) => each !== takeBack);
      element.remove();
      then();
    };
    const takeBack = () => finish(undo);
    this.undos.push(takeBack);
    element.append(button(null, "Undo", takeBack), bar);
    this.#add(element);
    this.say(`${text} Control Z takes it back.`);
    this.#after(
      TOAST_MS,
      element,
      () => finish(act),
      (left) => {
        bar.style.setProperty("--left", String(left));
      },
    );
  }

  /** @param {HTMLElement} element */
  #add(element) {
    this.surface();
    this.toasts.append(element);
  }

  /**
   * Has toasts lie over all else, and what is spoken be heard: whatever is beneath an open dialog
   * cannot be reached.
   */
  surface() {
    const dialog = [...document.querySelectorAll("dialog[open]")].pop() ?? document.body;
    if (this.toasts.parentElement !== dialog) dialog.append(this.toasts, this.spoken);
  }

  /**
   * @param {number} ms
   * @param {HTMLElement} element
   * @param {() => void} then
   * @param {(left: number) => void} [tick] told of the part of the time that is left
   */
  #after(ms, element, then, tick) {
    let left = ms;
    let last = performance.now();
    const timer = setInterval(() => {
      const now = performance.now();
      if (!element.matches(":hover, :focus-within")) left -= now - last;
      last = now;
      tick?.(Math.max(0, left / ms));
      if (left <= 0 || !element.isConnected) {
        clearInterval(timer);
        if (left <= 0) then();
      }
    }, TICK_MS);
  }
}
