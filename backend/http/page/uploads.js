/** Sends many photos from this device, a few at a time, and keeps count. */

import { ApiError, api, isAborted } from "./api.js";
import { size } from "./format.js";
import { isReadable } from "./intake.js";
import { sentence } from "./notices.js";

const BATCH_FILES = 8;
const BATCH_BYTES = 24e6;
const SIDE_BY_SIDE = 2;
const PAUSE_SECONDS = 3;

/** @typedef {{path: string, reason: string}} Failure */

/** Photos on their way from the browser into a collection. */
export class Upload {
  /**
   * @param {File[]} files
   * @param {string} collection
   * @param {number} maxBytes of one photo
   * @param {() => void} onChange
   */
  constructor(files, collection, maxBytes, onChange) {
    this.collection = collection;
    this.onChange = onChange;
    this.total = files.length;
    this.added = 0;
    this.known = 0;
    /** @type {Failure[]} */
    this.failures = [];
    /** @type {"running" | "done" | "cancelled"} */
    this.state = "running";
    /** @type {string | null} */
    this.waiting = null;
    this.startedAt = performance.now();
    this.stop = new AbortController();
    this.batches = this.#divide(files, maxBytes);
    this.finished = this.#run();
  }

  get processed() {
    return this.added + this.known + this.failures.length;
  }

  /** Photos a second so far. */
  get rate() {
    const seconds = (performance.now() - this.startedAt) / 1000;
    return seconds > 0 ? this.processed / seconds : 0;
  }

  /** What has been sent stays. */
  cancel() {
    if (this.state !== "running") return;
    this.state = "cancelled";
    this.stop.abort();
    this.onChange();
  }

  /** @param {File[]} files @param {number} maxBytes */
  #divide(files, maxBytes) {
    /** @type {File[][]} */
    const batches = [];
    let bytes = 0;
    for (const file of files) {
      if (file.size > maxBytes) {
        this.failures.push({
          path: file.name,
          reason: `it has ${size(file.size)}, the service takes at most ${size(maxBytes)}`,
        });
        continue;
      }
      const last = batches[batches.length - 1];
      if (last && last.length < BATCH_FILES && bytes + file.size <= BATCH_BYTES) {
        last.push(file);
        bytes += file.size;
      } else {
        batches.push([file]);
        bytes = file.size;
      }
    }
    return batches;
  }

  async #run() {
    const worker = async () => {
      for (let batch = this.batches.shift(); batch; batch = this.batches.shift()) {
        if (this.state !== "running") return;
        await this.#send(batch);
      }
    };
    await Promise.all(Array.from({ length: SIDE_BY_SIDE }, worker));
    if (this.state === "running") this.state = "done";
    this.onChange();
  }

  /** @param {File[]} files */
  async #send(files) {
    let batch = await this.#readable(files);
    // One key for all attempts: what the service has done already it does not do again.
    let key = newKey();
    while (this.state === "running" && batch.length > 0) {
      try {
        const { results } = await api.upload(batch, this.collection, key, this.stop.signal);
        this.waiting = null;
        /** @type {File[]} */
        const again = [];
        results.forEach(({ status, problem }, i) => {
          if (status === 201) this.added += 1;
          else if (status === 200) this.known += 1;
          else if (status === 503) again.push(batch[i]);
          else {
            this.failures.push({
              path: batch[i].name,
              reason: problem?.detail ?? "the service did not take it",
            });
          }
        });
        if (again.length > 0) {
          this.batches.push(again);
          this.waiting = results.find(({ status }) => status === 503)?.problem?.detail ?? null;
        }
        this.onChange();
        if (again.length > 0) await pause(PAUSE_SECONDS * 1000, this.stop.signal);
        return;
      } catch (error) {
        if (isAborted(error)) return;
        if (!(error instanceof ApiError) || !error.passing) {
          const reason = sentence(error);
          for (const file of batch) this.failures.push({ path: file.name, reason });
          this.waiting = null;
          this.onChange();
          return;
        }
        if (error.status === 0) {
          // A request with a file that cannot be read looks like one that nobody answers.
          const rest = await this.#readable(batch);
          if (rest.length < batch.length) {
            batch = rest;
            key = newKey();
            continue;
          }
        }
        this.waiting = error.message;
        this.onChange();
        await pause((error.retryAfter ?? PAUSE_SECONDS) * 1000, this.stop.signal);
      }
    }
  }

  /**
   * Those that can be read; the others have failed.
   * @param {File[]} files
   */
  async #readable(files) {
    const answers = await Promise.all(files.map(isReadable));
    const unread = files.filter((_, i) => !answers[i]);
    for (const { name } of unread) {
      this.failures.push({ path: name, reason: "this device cannot read it (any more)" });
    }
    if (unread.length > 0) this.onChange();
    return files.filter((_, i) => answers[i]);
  }
}

/** An Idempotency-Key: of one request and its repetitions. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {number} ms @param {AbortSignal} signal */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve(undefined);
    });
  });
}
