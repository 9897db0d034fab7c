/** Photos that are dropped or pasted anywhere on the page. */

import { fill, h, icon } from "./dom.js";

/**
 * @param {object} options
 * @param {() => boolean} options.adds whether photos would be added, not searched with
 * @param {(files: File[]) => void} options.takeFiles
 * @param {(url: string) => void} options.takeUrl of a picture that another page shows
 */
export function takeDrops({ adds, takeFiles, takeUrl }) {
  const words = h("p");
  const veil = h("div", { class: "veil", hidden: true }, icon("frame"), words);
  document.body.append(veil);
  let depth = 0;
  let fromHere = false;
  const matters = (/** @type {DragEvent} */ event) =>
    !fromHere &&
    event.dataTransfer !== null &&
    event.dataTransfer.types.some((type) => type === "Files" || type === "text/uri-list");

  addEventListener("dragstart", () => {
    fromHere = true;
  });
  addEventListener("dragend", () => {
    fromHere = false;
  });
  addEventListener("dragenter", (event) => {
    if (!matters(event)) return;
    depth += 1;
    fill(words, adds() ? "Drop the photos to add them" : "Drop the photo to search with it");
    veil.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) veil.hidden = true;
  });
  addEventListener("dragover", (event) => {
    if (matters(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    depth = 0;
    veil.hidden = true;
    if (!matters(event) || !event.dataTransfer) return;
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    const url = event.dataTransfer.getData("text/uri-list").split("\n")[0];
    if (files.length > 0) takeFiles(files);
    else if (isAddress(url)) takeUrl(url);
  });
}

/**
 * @param {object} options
 * @param {(file: File) => void} options.takeFile
 * @param {(url: string) => void} options.takeUrl
 */
export function takePastes({ takeFile, takeUrl }) {
  addEventListener("paste", (event) => {
    if (!event.clipboardData) return;
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    const text = event.clipboardData.getData("text/plain").trim();
    if (file) takeFile(file);
    else if (!(event.target instanceof HTMLInputElement) && isAddress(text)) takeUrl(text);
    else return;
    event.preventDefault();
  });
}

/** @param {string} text */
function isAddress(text) {
  return /^https?:\/\/\S+$/.test(text);
}
