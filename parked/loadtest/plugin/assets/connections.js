"use strict";
// Asks the master once a second what changed (parked/loadtest/plugin/connections_tab.py, ConnectionsTab.data) and shows it.

(() => {
  const EVERY_MS = 1000;
  const HEIGHT = 230; // pixels, without the legend
  const KEPT = 3600; // seconds of the charts, HISTORY_S of the master
  const SCHEME = "(prefers-color-scheme: dark)";
  const root = document.documentElement;
  const framed = window !== window.top;
  const dark = matchMedia(SCHEME);
  // The scheme's own rules, by which Locust's switch between light and dark is followed as well.
  const schemes = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).filter((rule) => rule.media?.mediaText === SCHEME);
  const places = [...document.querySelectorAll(".chart")];
  const body = document.querySelector(".wide tbody");
  const trouble = document.querySelector(".trouble");
  const specs = [
    {unit: "connections", lines: ["wanted", "established"]},
    {unit: "requests/s", lines: ["offered_per_s", "answered_per_s"]},
  ];
  let history = {time_s: []};
  let run = 0;
  let after = 0;
  let charts = [];

  root.classList.toggle("framed", framed);

  const text = (value, digits = 0) => (value == null ? "-" : value.toLocaleString("en", {maximumFractionDigits: digits}));
  const rate = (value) => text(value, value < 100 ? 1 : 0);
  const values = (_, splits) => splits.map((value) => text(value, 2));
  const columns = (spec) => [history.time_s, ...spec.lines.map((name) => history[name] ?? [])];

  function draw(spec, place) {
    const line = (name, more) => ({label: name.replace("_per_s", ""), width: 1.75, value: (_, value) => rate(value), points: {show: () => history.time_s.length < 3}, ...more});
    const [asked, got] = spec.lines;
    return new uPlot({
      width: place.clientWidth,
      height: HEIGHT,
      padding: [8, 14, 0, 0],
      scales: {x: {time: false}, y: {range: (_, least, most) => [0, 1.12 * (most || 1)]}},
      axes: [
        axis("time since the start, s", {values, space: 60}),
        axis(spec.unit, {values, size: widthOfLabels, space: 36}),
      ],
      cursor: {sync: {key: "time"}, drag: {x: true, y: false}, points: {size: 6}},
      legend: {markers: {width: 3, dash: (_, i) => (i === 1 ? "dashed" : "solid")}},
      series: [
        {label: "time", value: (_, x) => (x == null ? "-" : `${text(x)} s`)},
        line(asked, {stroke: color("c5"), dash: [7, 4]}),
        line(got, {stroke: color("c0")}),
      ],
    }, columns(spec), place);
  }

  function drawAll() {
    // Locust keeps its own choice of scheme here; without one it follows the system's, as we do.
    const chosen = framed ? localStorage.theme : undefined;
    const media = chosen === "dark" ? "all" : chosen === "light" ? "not all" : SCHEME;
    for (const rule of schemes) rule.media.mediaText = media;
    for (const chart of charts) chart.destroy();
    charts = specs.map((spec, index) => draw(spec, places[index]));
    window.charts = charts;
  }

  function remember(told) {
    if (told.run !== run || told.first !== after) history = {time_s: []};
    for (const [name, values] of Object.entries(told.history))
      history[name] = [...(history[name] ?? []), ...values].slice(-KEPT);
    run = told.run;
    after = told.first + told.history.time_s.length;
  }

  function show(told) {
    const tile = (id, value) => (document.getElementById(id).textContent = value);
    tile("established", `${text(told.established)} of ${text(told.wanted)}`);
    tile("rate", `${rate(told.answered_per_s)}${told.offered_per_s == null ? "" : ` of ${rate(told.offered_per_s)}`}`);
    tile("reconnects", text(told.reconnects));
    tile("closed_by_peer", text(told.closed_by_peer));
    tile("failures", `${text(told.failures)} of ${text(told.requests)}`);
    for (const place of document.querySelectorAll(".heard")) place.hidden = told.streams == null;
    tile("streams", text(told.streams));
    tile("events", `${text(told.events)}; ${text(told.events_lost)}, ${text(told.events_repeated)}`);
    if (told.delivery_p50_ms != null) tile("delivery", `${rate(told.delivery_p50_ms)}, ${rate(told.delivery_p99_ms)}`);
    const ended = told.state === "stopped" || told.state === "ready";
    tile("phase", told.run === 0 ? "not started" : `${ended ? "ended" : told.phase || "starting"}, ${text(told.time_s)} s`);
    told.workers.forEach((worker, index) => {
      const row = body.rows[index] ?? body.insertRow();
      const cells = [
        worker.state ? `${index} (${worker.state})` : index,
        worker.source,
        ...["wanted", "established", "reconnects", "closed_by_peer", "requests", "failures"].map((name) => text(worker[name])),
        text(worker.loop_lag_ms, 1),
        text(worker.loop_lag_max_ms, 1),
      ];
      cells.forEach((value, column) => {
        const cell = row.cells[column] ?? row.insertCell();
        if (cell.textContent !== String(value)) cell.textContent = value;
        cell.classList.toggle("number", column > 1);
      });
      row.title = worker.name;
      row.cells[0].classList.toggle("off", worker.state !== "");
    });
    while (body.rows.length > told.workers.length) body.deleteRow(-1);
    if (told.history.time_s.length)
      charts.forEach((chart, index) => {
        // What was zoomed into stays; double-click shows everything again.
        const {min, max} = chart.scales.x;
        const before = chart.data[0];
        const whole = min == null || (min <= before[0] && max >= before.at(-1));
        chart.setData(columns(specs[index]), whole);
        if (!whole) chart.redraw();
        if (chart.cursor.idx == null) chart.setLegend({idx: history.time_s.length - 1});
      });
  }

  async function ask() {
    try {
      const answer = await fetch(`./data?run=${run}&after=${after}`, {cache: "no-store"});
      if (answer.redirected) throw new Error("log in again");
      if (!answer.ok) throw new Error(`Locust answers ${answer.status}`);
      const told = await answer.json();
      remember(told);
      show(told);
      trouble.hidden = true;
    } catch (error) {
      trouble.textContent = `No news: ${error.message}. What is shown is old.`;
      trouble.hidden = false;
    }
    setTimeout(ask, EVERY_MS);
  }

  drawAll();
  ask();
  dark.addEventListener("change", drawAll);
  addEventListener("storage", (event) => event.key === "theme" && drawAll());
  new ResizeObserver(() => {
    charts.forEach((chart, index) => {
      const width = places[index].clientWidth;
      if (width && width !== chart.width) chart.setSize({width, height: HEIGHT});
    });
  }).observe(document.querySelector(".charts"));
})();
