/** A frame that is drawn over a photo: with a mouse, a finger or the keyboard. */

import { h, setStyle } from "./dom.js";

/** @typedef {import("./api.js").Box} Box */

const DRAG_PIXELS = 6;
const SMALLEST_PIXELS = 12;
const STEP = 0.02;

export class Frame {
  /**
   * @param {HTMLElement} stage holds the photo and nothing beside it
   * @param {(box: Box) => void} onDone is told of a frame that is to be searched for
   * @param {() => void} onClear is told when there is to be none any more
   */
  constructor(stage, onDone, onClear) {
    this.stage = stage;
    this.onDone = onDone;
    this.onClear = onClear;
    this.width = 0;
    this.height = 0;
    /** @type {Box | null} */
    this.box = null;
    this.drawing = false;
    /** Whether a pointer draws or moves it. */
    this.moving = false;
    this.element = h(
      "div",
      {
        class: "frame",
        role: "application",
        tabindex: "0",
        "aria-roledescription": "frame",
        hidden: true,
        onkeydown: (/** @type {KeyboardEvent} */ event) => this.#onKey(event),
      },
      ["nw", "ne", "sw", "se"].map((corner) => h("span", { class: `handle ${corner}` })),
    );
    stage.append(this.element);
    stage.addEventListener("pointerdown", (event) => this.#onPointer(event));
  }

  /**
   * @param {number} width of the photo
   * @param {number} height
   * @param {Box | null} box the frame that is searched for
   */
  show(width, height, box) {
    this.width = width;
    this.height = height;
    if (!this.moving) this.#set(box);
  }

  /** Whether every drag draws, fingers' too, which otherwise scroll. */
  set active(/** @type {boolean} */ value) {
    this.drawing = value;
    this.stage.classList.toggle("drawing", value);
  }

  get active() {
    return this.drawing;
  }

  /** Puts a frame in the middle, for the keyboard to move. */
  offer() {
    const { width: w, height: h_ } = this;
    this.#set(this.box ?? [w * 0.25, h_ * 0.25, w * 0.75, h_ * 0.75]);
    this.element.focus();
  }

  /** @param {Box | null} box */
  #set(box) {
    this.box = box;
    this.element.hidden = box === null;
    this.stage.classList.toggle("framed", box !== null);
    if (!box) return;
    const [x1, y1, x2, y2] = box;
    setStyle(this.element, {
      left: `${(x1 / this.width) * 100}%`,
      top: `${(y1 / this.height) * 100}%`,
      width: `${((x2 - x1) / this.width) * 100}%`,
      height: `${((y2 - y1) / this.height) * 100}%`,
    });
    const [w, h_] = [Math.round(x2 - x1), Math.round(y2 - y1)];
    this.element.setAttribute(
      "aria-label",
      `Frame of ${w} by ${h_} pixels at ${Math.round(x1)}, ${Math.round(y1)}. Arrow keys move it,` +
        " Shift and arrow keys resize it, Enter searches for what it holds, Escape takes it away.",
    );
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (!this.box) return;
    if (event.key === "Enter") {
      event.preventDefault();
      this.onDone(this.box);
      return;
    }
    if (event.key === "Escape") {
      event.preventDefault();
      this.#set(null);
      this.onClear();
      return;
    }
    const x = event.key === "ArrowLeft" ? -1 : event.key === "ArrowRight" ? 1 : 0;
    const y = event.key === "ArrowUp" ? -1 : event.key === "ArrowDown" ? 1 : 0;
    if (x === 0 && y === 0) return;
    event.preventDefault();
    const dx = x * this.width * STEP;
    const dy = y * this.height * STEP;
    this.#set(event.shiftKey ? this.#resized(this.box, dx, dy) : this.#moved(this.box, dx, dy));
  }

  /** @param {Box} box @param {number} dx @param {number} dy @returns {Box} */
  #moved([x1, y1, x2, y2], dx, dy) {
    const left = Math.min(this.width - (x2 - x1), Math.max(0, x1 + dx));
    const top = Math.min(this.height - (y2 - y1), Math.max(0, y1 + dy));
    return [left, top, left + x2 - x1, top + y2 - y1];
  }

  /** @param {Box} box @param {number} dx @param {number} dy @returns {Box} */
  #resized([x1, y1, x2, y2], dx, dy) {
    return [
      x1,
      y1,
      Math.min(this.width, Math.max(x1 + this.width * STEP, x2 + dx)),
      Math.min(this.height, Math.max(y1 + this.height * STEP, y2 + dy)),
    ];
  }

  /** @param {PointerEvent} event @returns {[number, number]} in pixels of the photo */
  #position(event) {
    const area = this.stage.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * this.width;
    const y = ((event.clientY - area.top) / area.height) * this.height;
    return [Math.min(this.width, Math.max(0, x)), Math.min(this.height, Math.max(0, y))];
  }

  /** @param {PointerEvent} event */
  #onPointer(event) {
    if (event.button !== 0 || !event.isPrimary || this.width === 0) return;
    const target = /** @type {Element} */ (event.target);
    const onFrame = this.element.contains(target);
    if (event.pointerType === "touch" && !this.drawing && !onFrame) return;
    const before = this.box;
    const start = this.#position(event);
    const corner = target.classList.contains("handle") ? target.classList[1] : null;
    let dragged = false;

    const move = (/** @type {PointerEvent} */ now) => {
      if (now.pointerId !== event.pointerId) return;
      const away = Math.hypot(now.clientX - event.clientX, now.clientY - event.clientY);
      if (!dragged && away < DRAG_PIXELS) return;
      if (!dragged) {
        dragged = true;
        this.moving = true;
        this.stage.setPointerCapture(event.pointerId);
      }
      const [x, y] = this.#position(now);
      if (before && corner) {
        const anchor = [
          corner.endsWith("w") ? before[2] : before[0],
          corner.startsWith("n") ? before[3] : before[1],
        ];
        this.#set(spanned(anchor[0], anchor[1], x, y));
      } else if (before && onFrame) {
        this.#set(this.#moved(before, x - start[0], y - start[1]));
      } else this.#set(spanned(start[0], start[1], x, y));
    };
    const stop = () => {
      this.moving = false;
      this.stage.removeEventListener("pointermove", move);
      this.stage.removeEventListener("pointerup", done);
      this.stage.removeEventListener("pointercancel", cancelled);
    };
    const cancelled = () => {
      stop();
      this.#set(before);
    };
    const done = (/** @type {PointerEvent} */ last) => {
      if (last.pointerId !== event.pointerId) return;
      stop();
      if (!dragged) return;
      // The click that follows a drag is none on the object beneath.
      const swallow = (/** @type {Event} */ click) => {
        click.preventDefault();
        click.stopPropagation();
      };
      addEventListener("click", swallow, { capture: true, once: true });
      setTimeout(() => removeEventListener("click", swallow, { capture: true }), 0);
      const box = this.box;
      const scale = this.stage.clientWidth / this.width;
      if (
        box &&
        (box[2] - box[0]) * scale >= SMALLEST_PIXELS &&
        (box[3] - box[1]) * scale >= SMALLEST_PIXELS
      ) {
        this.onDone(box);
      } else this.#set(before);
    };
    this.stage.addEventListener("pointermove", move);
    this.stage.addEventListener("pointerup", done);
    this.stage.addEventListener("pointercancel", cancelled);
  }
}

/** @param {number} ax @param {number} ay @param {number} bx @param {number} by @returns {Box} */
function spanned(ax, ay, bx, by) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}
