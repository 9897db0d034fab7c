/** A photo with the outlines of its objects over it. */

import { fill, h, setStyle } from "./dom.js";
import { labelName, score } from "./format.js";
import { placeBox } from "./tiles.js";

/** @typedef {import("./api.js").Detection} Detection */

/** Beyond so many, labels are shown for the object that is pointed at. */
const MOST_TAGS = 12;
const MOST_ENLARGED = 2;
/** Of a label, roughly, as parts of the photo. */
const TAG_WIDTH = 0.3;
const TAG_HEIGHT = 0.12;

export class Stage {
  /**
   * @param {(index: number, object: Detection) => HTMLElement} makeOutline a button or a link
   */
  constructor(makeOutline) {
    this.makeOutline = makeOutline;
    this.img = h("img", { draggable: "false", alt: "", onerror: () => this.#onError() });
    this.words = h("p", { class: "unseen-words" }, "This photo cannot be shown here.");
    this.layer = h("div", { class: "outlines" });
    this.element = h("div", { class: "stage" }, this.img, this.words, this.layer);
  }

  /**
   * @param {string} src
   * @param {string} alt
   */
  showPhoto(src, alt) {
    this.img.alt = alt;
    if (this.img.src !== src) {
      this.element.classList.remove("unseen");
      this.img.src = src;
    }
  }

  /**
   * @param {number} width of the upright photo
   * @param {number} height
   * @param {Detection[]} objects
   */
  showObjects(width, height, objects) {
    this.showSize(width, height);
    this.layer.classList.toggle("crowded", objects.length > MOST_TAGS);
    /** @type {Detection[]} */
    const tagged = [];
    const bySize = [...objects].sort((a, b) => area(b) - area(a));
    fill(
      this.layer,
      objects.map((object, index) => {
        const outline = this.makeOutline(index, object);
        outline.classList.add("outline");
        outline.append(
          h(
            "span",
            { class: "tag" },
            `${labelName(object.label)} `,
            h("span", {}, score(object.score)),
          ),
        );
        // Small ones lie over large ones, so that each can be pointed at.
        setStyle(outline, { "z-index": bySize.indexOf(object) + 1 });
        placeBox(outline, object.box, { width, height }, { width, height });
        outline.classList.toggle("end", object.box[0] > width * 0.7);
        // A label that would lie on another's goes to the bottom of its outline.
        const hides = tagged.some(
          ({ box: [x, y] }) =>
            Math.abs(x - object.box[0]) < width * TAG_WIDTH &&
            Math.abs(y - object.box[1]) < height * TAG_HEIGHT,
        );
        if (hides) outline.classList.add("low");
        else tagged.push(object);
        return outline;
      }),
    );
  }

  /** @param {number} width @param {number} height */
  showSize(width, height) {
    if (width <= 0 || height <= 0) return;
    setStyle(this.element, { "--ratio": width / height, "--widest": `${width * MOST_ENLARGED}px` });
  }

  /** Takes photo and outlines away. */
  clear() {
    fill(this.layer);
    this.img.removeAttribute("src");
    this.element.classList.remove("unseen");
  }

  #onError() {
    // A format that the service reads and this browser does not, or a file that is gone.
    this.element.classList.add("unseen");
  }
}

/** @param {Detection} object */
function area({ box: [x1, y1, x2, y2] }) {
  return (x2 - x1) * (y2 - y1);
}
