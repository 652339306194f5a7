"use strict";
// Zoom and hover for the charts over time. The page says all of it without this script.
(() => {
  const plots = [...document.querySelectorAll("svg.time")];
  const axis = document.querySelector(".axis.clock");
  const table = document.getElementById("timeline");
  if (!plots.length || !axis || !table) return;
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const begins = rows.map((row) => Number(row.cells[1].textContent.replaceAll(",", "")));
  const whole = Number(axis.dataset.seconds);
  let from = 0, to = 1;
  const words = (seconds) => {
    const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = whole % 60;
    return h ? `${h}h${String(m).padStart(2, "0")}m` : m ? `${m}m${String(s).padStart(2, "0")}s` : `${seconds.toFixed(1)}s`;
  };
  const show = (low, high) => {
    const width = Math.min(Math.max(high - low, 0.002), 1);
    from = Math.min(Math.max(low, 0), 1 - width);
    to = from + width;
    for (const plot of plots) plot.setAttribute("viewBox", `${from * 1000} 0 ${width * 1000} 100`);
    const labels = [...axis.children];
    labels.forEach((label, i) => { label.textContent = words(whole * (from + (width * i) / (labels.length - 1))); });
  };
  const tools = document.createElement("p");
  tools.className = "tools";
  const middle = () => (from + to) / 2;
  for (const [text, name, act] of [
    ["+", "zoom in", () => show(middle() - (to - from) / 4, middle() + (to - from) / 4)],
    ["\u2212", "zoom out", () => show(middle() - (to - from), middle() + (to - from))],
    ["\u2190", "earlier", () => show(from - (to - from) / 2, to - (to - from) / 2)],
    ["\u2192", "later", () => show(from + (to - from) / 2, to + (to - from) / 2)],
    ["whole run", "whole run", () => show(0, 1)],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", name);
    button.addEventListener("click", act);
    tools.append(button);
  }
  axis.after(tools);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const at = (plot, event) => {
    const box = plot.getBoundingClientRect();
    return from + (to - from) * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  };
  let began = null;
  for (const plot of plots) {
    plot.addEventListener("pointermove", (event) => {
      const second = at(plot, event) * whole;
      const next = begins.findIndex((begin) => begin > second);
      const row = rows[next < 0 ? rows.length - 1 : Math.max(next - 1, 0)];
      tip.textContent = heads.map((head, i) => `${head}: ${row.cells[i].textContent}`).filter((_, i) => row.cells[i].textContent).join("\n");
      tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
    });
    plot.addEventListener("pointerleave", () => { tip.hidden = true; });
    plot.addEventListener("pointerdown", (event) => { began = at(plot, event); });
    plot.addEventListener("pointerup", (event) => {
      const ended = at(plot, event);
      if (began !== null && Math.abs(ended - began) > (to - from) / 50) show(Math.min(began, ended), Math.max(began, ended));
      began = null;
    });
    plot.addEventListener("dblclick", () => show(0, 1));
  }
})();
