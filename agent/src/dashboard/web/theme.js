// Sets the theme before the first paint: what was chosen here, otherwise what the system prefers.
(() => {
  const chosen = (() => {
    try {
      return localStorage.getItem("millwright.theme");
    } catch {
      return null;
    }
  })();
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
