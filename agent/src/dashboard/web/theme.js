// Sets the theme before the first paint: what was chosen here, otherwise what the system prefers, also when that changes.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      const theme = localStorage.getItem("millwright.theme");
      return theme === "light" || theme === "dark" ? theme : null;
    } catch {
      return null;
    }
  };
  const apply = () => {
    root.dataset.theme = chosen() ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", () => {
    apply();
    window.dispatchEvent(new Event("themechange"));
  });
  apply();
})();
