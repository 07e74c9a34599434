// Two runs beside each other: compare.html#KEY,KEY. A run's data are a script of its own, which is loaded when chosen.
"use strict";

{
  const pickers = [document.querySelector("#a"), document.querySelector("#b")];
  const place = document.querySelector("#compared");
  const keys = normlab.index.map((run) => run.key);

  for (const picker of pickers) {
    picker.append(...normlab.index.map((run) => new Option(`${run.name} (${run.key})`, run.key)));
    picker.addEventListener("change", () => { location.hash = pickers.map((one) => one.value).join(","); });
  }

  const make = (name, text = "", className = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    element.className = className;
    return element;
  };

  // Keys come from the address, which anyone may have written: only those of the index are loaded.
  const load = (key) => new Promise((resolve, reject) => {
    if (normlab.runs[key]) return resolve(normlab.runs[key]);
    const script = document.createElement("script");
    script.src = `runs/${key}.js`;
    script.onload = () => resolve(normlab.runs[key]);
    script.onerror = () => reject(new Error(`runs/${key}.js cannot be read`));
    document.head.append(script);
  });

  const differences = (title, a, b) => {
    const names = [...new Set([...Object.keys(a), ...Object.keys(b)])];
    const differing = names.filter((name) => a[name] !== b[name]);
    const section = make("section");
    section.append(make("h2", title), make("p", `${names.length - differing.length} of ${names.length} are the same.`));
    if (!differing.length) return section;
    const table = make("table", "", "list");
    const line = (cells, kind) => {
      const row = table.insertRow();
      row.append(...cells.map((cell) => make(kind, cell ?? "–")));
    };
    line(["", "A", "B"], "th");
    for (const name of differing) line([name, a[name], b[name]], "td");
    const wide = make("div", "", "wide");
    wide.append(table);
    section.append(wide);
    return section;
  };

  const panel = (title) => {
    const figure = make("figure", "", "chart");
    const plot = make("div", "", "plot");
    figure.append(make("figcaption", title), plot);
    place.append(figure);
    return plot;
  };

  // A's lines are whole and B's dashed, in one chart with one scale; menus and buttons of A's serve both.
  const overlaid = (a, b) => {
    const of = (chart, name, dash) => chart.data.map((trace) => (
      { ...trace, name: `${trace.name}, ${name}`, legendgroup: name, line: { ...trace.line, dash } }
    ));
    const layout = structuredClone(a.layout);
    for (const menu of layout.updatemenus ?? []) {
      const others = Object.fromEntries((b.layout.updatemenus?.[0]?.buttons ?? []).map((one) => [one.label, one]));
      for (const button of menu.buttons.filter((one) => one.method === "restyle")) {
        const other = others[button.label]?.args[1] ?? b.data.map(() => false);
        button.args = ["visible", [...button.args[1], ...other]];
      }
    }
    return [[...of(a, "A", "solid"), ...of(b, "B", "dash")], layout];
  };

  const show = async () => {
    const [a, b] = location.hash.slice(1).split(",").map((key) => (keys.includes(key) ? key : null));
    pickers[0].value = a ?? keys[0];
    pickers[1].value = b ?? keys.find((key) => key !== pickers[0].value) ?? keys[0];
    place.replaceChildren();
    if (!keys.length) return place.append(make("p", "There are no runs to compare."));
    let runs;
    try {
      runs = await Promise.all(pickers.map((picker) => load(picker.value)));
    } catch (error) {
      return place.append(make("p", error.message, "problems"));
    }
    place.replaceChildren();
    const [one, other] = runs;
    place.append(differences("Outcome", one.metrics, other.metrics));
    place.append(differences("Settings", one.settings, other.settings));
    place.append(differences("Made by", one.made, other.made));
    place.append(make("h2", "Curves and ratios"));
    const clock = (chart) => chart.layout.xaxis?.title?.text;
    const of = (run, id) => run.charts.find((chart) => chart.id === id);
    for (const id of new Set(runs.flatMap((run) => run.charts.map((chart) => chart.id)))) {
      const [x, y] = runs.map((run) => of(run, id));
      if (x && y && x.overlay && clock(x) === clock(y)) {
        normlab.draw(panel(x.title), ...overlaid(x, y));
      } else {
        for (const [chart, name] of [[x, "A"], [y, "B"]]) {
          if (chart) normlab.draw(panel(`${name}: ${chart.title}`), chart.data, chart.layout);
        }
      }
    }
    place.dataset.shown = pickers.map((picker) => picker.value).join(",");
  };

  window.addEventListener("hashchange", show);
  show();
}
