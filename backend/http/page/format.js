/** Numbers, times and names as people read them. */

const count = new Intl.NumberFormat("en");
const oneDigit = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/** @param {number} value */
export function number(value) {
  return count.format(value);
}

/**
 * "1 photo", "2 photos".
 * @param {number} value
 * @param {string} noun
 * @param {string} [plural]
 */
export function many(value, noun, plural = `${noun}s`) {
  return `${count.format(value)} ${value === 1 ? noun : plural}`;
}

/** @param {number} value */
export function decimal(value) {
  return oneDigit.format(value);
}

/**
 * A squared distance of unit vectors: 0 to 4.
 * @param {number} value
 */
export function distance(value) {
  return value.toFixed(3);
}

/**
 * A detector's score.
 * @param {number} value 0 to 1
 */
export function score(value) {
  return `${Math.round(value * 100)}\u202f%`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${oneDigit.format(bytes / 1e3)} kB`;
  if (bytes < 1e9) return `${oneDigit.format(bytes / 1e6)} MB`;
  return `${oneDigit.format(bytes / 1e9)} GB`;
}

/**
 * How long something takes, roughly.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} minutes`;
  return `${oneDigit.format(seconds / 3600)} hours`;
}

/** @param {string} iso */
export function time(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.valueOf()) ? iso : moment.format(date);
}

/**
 * A path's last part.
 * @param {string} path
 */
export function basename(path) {
  return path.slice(path.lastIndexOf("/") + 1) || path;
}

/**
 * What a detector's label is called; "image" stands for a photo as a whole.
 * @param {string} label
 */
export function labelName(label) {
  return label === "image" ? "whole photo" : label;
}

/**
 * "a, b and c"
 * @param {string[]} words
 * @param {"and" | "or"} conjunction
 */
export function listing(words, conjunction) {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} ${conjunction} ${words[words.length - 1]}`;
}
