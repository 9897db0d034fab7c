/** The switch between light and dark. */

import { fill, icon } from "./dom.js";

/**
 * Has a button switch, and remember; until then the system's choice holds.
 * @param {HTMLElement} control
 */
export function setUpAppearance(control) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    const dark = isDark();
    fill(control, icon(dark ? "sun" : "moon"));
    control.setAttribute("aria-label", dark ? "Light colors" : "Dark colors");
    control.title = dark ? "Light colors" : "Dark colors";
  };
  control.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // Storage is switched off: the choice holds until the page is left.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}
