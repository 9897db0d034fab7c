/** Photos that are dropped or pasted anywhere on the page, and whether they can be read. */

import { fill, h, icon } from "./dom.js";

/**
 * @param {object} options
 * @param {() => boolean} options.adds whether files would be added, not searched with
 * @param {(files: File[], unread: string[]) => void} options.takeFiles and the names of what
 *   cannot be read
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
    event.preventDefault();
    depth += 1;
    const adding = adds() && event.dataTransfer?.types.includes("Files");
    fill(words, adding ? "Drop the photos to add them" : "Drop the photo to search with it");
    veil.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) veil.hidden = true;
  });
  addEventListener("dragover", (event) => {
    if (matters(event)) event.preventDefault();
  });
  addEventListener("drop", async (event) => {
    depth = 0;
    veil.hidden = true;
    if (!matters(event) || !event.dataTransfer) return;
    event.preventDefault();
    // Both at once: after the first wait the drop is over.
    const url = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
    const dropped = [...event.dataTransfer.items].filter(({ kind }) => kind === "file").map(taken);
    if (dropped.length > 0) {
      /** @type {string[]} */
      const unread = [];
      const files = [];
      for (const each of dropped) {
        if (each instanceof File) files.push(each);
        else if (each) for await (const file of filesBelow(each, unread)) files.push(file);
      }
      takeFiles(files, unread);
    } else if (isAddress(url)) takeUrl(url);
  });
}

/**
 * What a drop holds: a file, or a folder, which as a file could not be read.
 * @param {DataTransferItem} item
 */
function taken(item) {
  const entry = item.webkitGetAsEntry();
  return entry?.isDirectory ? /** @type {FileSystemDirectoryEntry} */ (entry) : item.getAsFile();
}

/**
 * @param {FileSystemDirectoryEntry} folder
 * @param {string[]} unread gets the names of what cannot be read
 * @returns {AsyncGenerator<File>}
 */
async function* filesBelow(folder, unread) {
  const reader = folder.createReader();
  try {
    for (;;) {
      /** @type {FileSystemEntry[]} some of them; none at the end */
      const entries = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (entries.length === 0) return;
      for (const entry of entries) {
        if (entry.isDirectory) {
          yield* filesBelow(/** @type {FileSystemDirectoryEntry} */ (entry), unread);
          continue;
        }
        /** @type {File | null} */
        const file = await new Promise((done) =>
          /** @type {FileSystemFileEntry} */ (entry).file(done, () => done(null)),
        );
        if (file) yield file;
        else unread.push(entry.name);
      }
    }
  } catch {
    unread.push(folder.name);
  }
}

/**
 * Whether a file can be read: it may be gone or changed since it was chosen.
 * @param {Blob} file
 */
export async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
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
