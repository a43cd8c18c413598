// What every page has: the menu on narrow screens, the choice of light or dark, buttons that copy.
const root = document.documentElement;

function remembered(name) {
  try { return localStorage.getItem(name); } catch { return null; }  // storage may be switched off
}

function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* then it holds for this page */ }
}

const theme = remembered("theme");
if (theme === "light" || theme === "dark") root.dataset.theme = theme;

for (const button of document.querySelectorAll(".theme")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remember("theme", root.dataset.theme);
  });
}

for (const button of document.querySelectorAll(".menu")) {
  const navigation = document.getElementById(button.getAttribute("aria-controls"));
  button.hidden = false;
  navigation.classList.add("folds");
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    navigation.classList.toggle("open", open);
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
  });
}
