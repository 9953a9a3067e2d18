/**
 * Sets the dark or light theme before the first paint, as `data-theme` on the root element. Modules
 * are deferred, so this is a classic script in the head.
 *
 * The system setting applies until the user presses the button. A choice that equals the system
 * setting is not stored, so that the page continues to follow the system.
 */
(() => {
  const KEY = "scoreboard.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");

  function load() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage can be blocked; the choice is then lost with the page
    }
  }

  /** @param {string | null} theme */
  function save(theme) {
    try {
      if (theme === null) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, theme);
    } catch {
      // as above
    }
  }

  function current() {
    const choice = load();
    if (choice === "dark" || choice === "light") return choice;
    return system.matches ? "dark" : "light";
  }

  /** @param {string} theme */
  function show(theme) {
    document.documentElement.dataset.theme = theme;
    document.querySelector("#theme")?.setAttribute("aria-pressed", String(theme === "dark"));
  }

  show(current());
  system.addEventListener("change", () => show(current()));
  addEventListener("storage", () => show(current()));
  addEventListener("DOMContentLoaded", () => {
    show(current());
    document.querySelector("#theme")?.addEventListener("click", () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      save(theme === (system.matches ? "dark" : "light") ? null : theme);
      show(theme);
    });
  });
})();
