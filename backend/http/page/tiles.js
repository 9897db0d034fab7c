/** What the grids show of a photo. */

import { thumbnailUrl } from "./api.js";
import { h, icon, setStyle } from "./dom.js";
import { basename, distance, labelName } from "./format.js";

/** @typedef {import("./api.js").Box} Box */
/** @typedef {import("./api.js").ImageSummary} ImageSummary */
/** @typedef {import("./api.js").Hit} Hit */
/** @typedef {import("./justify.js").Place} Place */

/**
 * A photo's thumbnail, which appears when it is there.
 * @param {ImageSummary} image
 * @param {number} side the longer one, in CSS pixels
 */
export function thumbnail(image, side) {
  const img = h("img", {
    alt: basename(image.path),
    draggable: "false",
    decoding: "async",
    class: "arriving",
    src: thumbnailUrl(image.id, side),
    onload: () => img.classList.remove("arriving"),
    onerror: () => {
      img.classList.remove("arriving");
      img.classList.add("missing");
    },
  });
  return img;
}

/**
 * Where a box lies on a tile that its photo covers.
 * @param {HTMLElement} element
 * @param {Box} box
 * @param {{width: number, height: number}} photo
 * @param {{width: number, height: number}} tile
 */
export function placeBox(element, box, photo, tile) {
  const scale = Math.max(tile.width / photo.width, tile.height / photo.height);
  const left = (tile.width - photo.width * scale) / 2;
  const top = (tile.height - photo.height * scale) / 2;
  const clamp = (/** @type {number} */ value) => Math.min(100, Math.max(0, value * 100));
  const x1 = clamp((left + box[0] * scale) / tile.width);
  const y1 = clamp((top + box[1] * scale) / tile.height);
  const x2 = clamp((left + box[2] * scale) / tile.width);
  const y2 = clamp((top + box[3] * scale) / tile.height);
  setStyle(element, {
    left: `${x1}%`,
    top: `${y1}%`,
    width: `${Math.max(0, x2 - x1)}%`,
    height: `${Math.max(0, y2 - y1)}%`,
  });
}

/**
 * @param {ImageSummary} image
 * @param {string} href
 * @param {Place} place
 */
export function photoTile(image, href, place) {
  if (image.state === "failed") {
    return h(
      "a",
      { class: "tile failed", href },
      icon("broken"),
      h("strong", {}, basename(image.path)),
      h("span", {}, image.error ?? "It could not be read."),
    );
  }
  return h("a", { class: "tile", href }, thumbnail(image, Math.max(place.width, place.height)));
}

/**
 * A photo with the objects that are like the query.
 * @param {Hit} hit
 * @param {string} href
 * @param {Place} place
 */
export function hitTile(hit, href, place) {
  const labels = [...new Set(hit.matches.map((match) => labelName(match.object.label)))];
  const outlines = hit.matches
    .filter((match) => match.object.label !== "image")
    .map((match) => {
      const outline = h("span", { class: "match" });
      placeBox(outline, match.object.box, hit.image, place);
      return outline;
    });
  return h(
    "a",
    { class: "tile", href },
    thumbnail(hit.image, Math.max(place.width, place.height)),
    outlines,
    h(
      "span",
      { class: "caption" },
      h("span", {}, labels.join(", ")),
      h(
        "span",
        { class: "distance", title: "Distance: 0 is the same, 4 the opposite" },
        h("span", { class: "hidden" }, " distance "),
        distance(hit.distance),
      ),
    ),
  );
}
