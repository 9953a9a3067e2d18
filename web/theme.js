/**
 * Dark or light, decided before the first paint; loaded in the head and therefore not a module.
 *
 * The system's wish counts until somebody presses the button; a choice that agrees with the system
 * is forgotten again, so that the page goes on following it. Sets `data-theme` on the root element.
 */
(() => {
  const KEY = "scoreboard.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage can be forbidden; the theme then lasts as long as the page
    }
  }

  function remember(theme) {
    try {
      if (theme === null) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, theme);
    } catch {
      // as above
    }
  }

  function wished() {
    const choice = chosen();
    if (choice === "dark" || choice === "light") return choice;
    return system.matches ? "dark" : "light";
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    document.querySelector("#theme")?.setAttribute("aria-pressed", String(theme === "dark"));
  }

  show(wished());
  system.addEventListener("change", () => show(wished()));
  addEventListener("storage", () => show(wished()));
  addEventListener("DOMContentLoaded", () => {
    show(wished());
    document.querySelector("#theme").addEventListener("click", () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      remember(theme === (system.matches ? "dark" : "light") ? null : theme);
      show(theme);
    });
  });
})();
