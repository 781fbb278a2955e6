// Fills <time data-at="SECONDS" data-as="ago|clock|day"> in the reader's language and time zone.
(() => {
  const language = () => document.documentElement.lang || "en";
  const steps = [[60, 1, "second"], [3600, 60, "minute"], [86400, 3600, "hour"],
    [2592000, 86400, "day"], [31536000, 2592000, "month"], [Infinity, 31536000, "year"]];
  const ago = (at) => {
    const delta = at - Date.now() / 1000;
    const [, unit, name] = steps.find(([limit]) => Math.abs(delta) < limit);
    const format = new Intl.RelativeTimeFormat(language(), { numeric: "auto", style: "short" });
    return format.format(Math.round(delta / unit), name);
  };
  const clock = (at, options) => new Intl.DateTimeFormat(language(), options).format(at * 1000);
  const full = { dateStyle: "medium", timeStyle: "medium" };
  const fill = () => {
    for (const element of document.querySelectorAll("time[data-at]")) {
      const at = Number(element.dataset.at);
      const text = !at ? "–"
        : element.dataset.as === "clock" ? clock(at, full)
        : element.dataset.as === "day" ? clock(at, { dateStyle: "medium" })
        : ago(at);
      if (element.textContent !== text) element.textContent = text;
      if (at && !element.title) element.title = clock(at, full);
    }
  };
  let planned = false;
  const plan = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => { planned = false; fill(); });
  };
  const watch = () => {
    new MutationObserver(plan).observe(document.body, {
      subtree: true, childList: true, attributes: true, attributeFilter: ["data-at"] });
    setInterval(fill, 1000);
    fill();
  };
  if (document.body) watch(); else addEventListener("DOMContentLoaded", watch);
})();
