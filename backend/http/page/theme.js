// Before the first paint, so that a dark page never flashes light: the one script that is no module.
(() => {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is switched off: the system's own choice holds.
  }
})();
