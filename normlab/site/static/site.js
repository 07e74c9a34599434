// What all pages do: charts of plotly, finding words, sorting lists, choosing two runs. Nothing is fetched, so that it
// works on files. Texts go into pages as text; charts.py has escaped those of charts.
"use strict";

const normlab = { runs: {} };

const LOOK = {
  font: { family: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', size: 12, color: "#1b1f24" },
  margin: { l: 56, r: 12, t: 40, b: 48 },
  legend: { orientation: "h", y: -0.26, yanchor: "top", traceorder: "normal" },
  hovermode: "closest",
  height: 380,
  paper_bgcolor: "#fff",
  plot_bgcolor: "#fff",
};
const AXIS = { gridcolor: "#e6eaee", zeroline: false, automargin: true, linecolor: "#8a939c", ticks: "outside" };

normlab.draw = (element, data, layout) => {
  const whole = { ...LOOK, ...layout };
  for (const name of Object.keys(whole).concat("xaxis", "yaxis").filter((key) => /^[xy]axis\d*$/.test(key))) {
    whole[name] = { ...AXIS, ...whole[name] };
  }
  const tools = innerWidth > 640 ? "hover" : false; // on a phone they hide menus, and fingers zoom
  const left = ["select2d", "lasso2d", "autoScale2d"];
  return Plotly.newPlot(element, data, whole, {
    responsive: true, displaylogo: false, displayModeBar: tools, modeBarButtonsToRemove: left,
  });
};

normlab.drawAll = (charts) => {
  for (const chart of charts) {
    const place = document.querySelector(`[data-chart="${CSS.escape(chart.id)}"] .plot`);
    if (place) normlab.draw(place, chart.data, chart.layout);
  }
};

// ---- lists ----------------------------------------------------------------------------------------------------------

for (const input of document.querySelectorAll("[data-finds]")) {
  const entries = [...document.querySelectorAll("." + input.dataset.finds)];
  const texts = entries.map((entry) => entry.textContent.toLowerCase());
  const found = input.closest(".finder").querySelector(".found");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    entries.forEach((entry, k) => {
      entry.hidden = !words.every((word) => texts[k].includes(word));
      number += !entry.hidden;
    });
    found.textContent = words.length ? `${number} of ${entries.length}` : "";
  });
}

for (const table of document.querySelectorAll("[data-sortable]")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    let sign = 1;
    button.addEventListener("click", () => {
      const text = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => sign * text(a).localeCompare(text(b), "en", { numeric: true }));
      body.append(...rows);
      sign = -sign;
    });
  });
}

const compareButton = document.querySelector("#compare");
if (compareButton) {
  const chosen = () => [...document.querySelectorAll("[data-run]:checked")].map((box) => box.dataset.run);
  document.addEventListener("change", () => { compareButton.disabled = chosen().length !== 2; });
  compareButton.addEventListener("click", () => { location.href = "compare.html#" + chosen().join(","); });
}

// A claim or a cell that a link leads to is opened.
const opened = location.hash && document.getElementById(location.hash.slice(1));
if (opened) opened.querySelectorAll("details").forEach((details) => { details.open = true; });
