/** Lays photos out in rows of one height that fill the width. */

/** @typedef {{left: number, top: number, width: number, height: number}} Place in CSS pixels */
/** @typedef {{first: number, last: number, top: number, height: number}} Row of items first..last */

const NARROWEST = 0.45;
const WIDEST = 3.2;
const FAILED = 2.4;

/**
 * The proportions of a tile: the photo's own, unless it is extremely long; of one that has failed,
 * such that its reason can be read.
 * @param {{width: number, height: number, state: string}} photo 0 where unknown
 */
export function tileRatio({ width, height, state }) {
  if (state === "failed") return FAILED;
  if (width <= 0 || height <= 0) return 1;
  return Math.min(WIDEST, Math.max(NARROWEST, width / height));
}

/** A justified layout that grows at its end. */
export class JustifiedLayout {
  /**
   * @param {number} width
   * @param {number} target height of a row
   * @param {number} gap
   * @param {number} below room under each tile
   */
  constructor(width, target, gap, below = 0) {
    this.width = width;
    this.target = target;
    this.gap = gap;
    this.below = below;
    /** @type {Place[]} */
    this.places = [];
    /** @type {Row[]} */
    this.rows = [];
    this.full = true;
  }

  get height() {
    const row = this.rows[this.rows.length - 1];
    return row ? row.top + row.height : 0;
  }

  /**
   * Places what has been added; only a last row that was not full is placed anew.
   * @param {number[]} ratios width to height, of all items
   */
  extend(ratios) {
    if (!this.full) {
      const row = this.rows.pop();
      if (row) this.places.length = row.first;
    }
    let first = this.places.length;
    let sum = 0;
    this.full = true;
    for (let i = first; i < ratios.length; i += 1) {
      sum += ratios[i];
      const gaps = this.gap * (i - first);
      if (sum * this.target + gaps >= this.width) {
        this.#addRow(ratios, first, i, (this.width - gaps) / sum);
        first = i + 1;
        sum = 0;
      }
    }
    if (first < ratios.length) {
      this.#addRow(ratios, first, ratios.length - 1, this.target);
      this.full = false;
    }
  }

  /**
   * @param {number[]} ratios
   * @param {number} first
   * @param {number} last
   * @param {number} height
   */
  #addRow(ratios, first, last, height) {
    const top = this.rows.length === 0 ? 0 : this.height + this.gap;
    let left = 0;
    for (let i = first; i <= last; i += 1) {
      const width = ratios[i] * height;
      this.places.push({ left, top, width, height: height + this.below });
      left += width + this.gap;
    }
    this.rows.push({ first, last, top, height: height + this.below });
  }

  /**
   * The items of the rows that touch a stretch: [first, last], or null where there are none.
   * @param {number} from
   * @param {number} to
   * @returns {[number, number] | null}
   */
  between(from, to) {
    const begin = this.#rowAt(from);
    if (begin >= this.rows.length) return null;
    let end = begin;
    while (end + 1 < this.rows.length && this.rows[end + 1].top < to) end += 1;
    return this.rows[begin].top < to ? [this.rows[begin].first, this.rows[end].last] : null;
  }

  /**
   * The item above or below another.
   * @param {number} index
   * @param {1 | -1} direction
   */
  vertical(index, direction) {
    const place = this.places[index];
    const at = this.#rowAt(place.top + place.height / 2);
    const row = this.rows[at + direction];
    if (!row) return index;
    const middle = place.left + place.width / 2;
    let best = row.first;
    for (let i = row.first; i <= row.last; i += 1) {
      if (this.#away(i, middle) < this.#away(best, middle)) best = i;
    }
    return best;
  }

  /** @param {number} index @param {number} middle */
  #away(index, middle) {
    const place = this.places[index];
    return Math.abs(place.left + place.width / 2 - middle);
  }

  /**
   * The first row that ends below a height.
   * @param {number} y
   */
  #rowAt(y) {
    let low = 0;
    let high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].top + this.rows[middle].height > y) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
