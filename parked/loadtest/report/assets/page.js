"use strict";
// Draws the page's charts, data in the element #charts (parked/loadtest/report/charts.py), with uPlot.

(() => {
  const HEIGHT = 250; // pixels, without the legend
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const places = [...document.querySelectorAll(".chart")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let charts = [];

  function text(value) {
    if (value == null) return "-";
    const size = Math.abs(value);
    if (size >= 100 || size === 0) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(3)));
  }

  // A share of requests by its place on the axis, 1 / (1 - share): 2 is 50 %, 1,000 is 99.9 %.
  function share(place) {
    const digits = Math.max(0, Math.ceil(Math.log10(place)) - 2);
    return `${Number((100 * (1 - 1 / place)).toFixed(digits))} %`;
  }

  // Labels of shares, less those without room before the next one: the first come close together.
  const shares = (chart, splits) =>
    splits.map((place, index) => {
      const next = splits[index + 1];
      const room = next == null ? Infinity : chart.valToPos(next, "x") - chart.valToPos(place, "x");
      return room < 40 ? "" : share(place);
    });

  // 1, 2, 5, 10, ... between the ends; only the powers of ten if they are many.
  function logSteps(low, high) {
    const steps = [];
    const all = high / low < 3000 ? [1, 2, 5] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of all) {
        const value = Number((step * 10 ** power).toPrecision(3));
        if (value >= low && value <= high) steps.push(value);
      }
    return steps;
  }

  // The legend's mark for a line: a border has no other styles.
  const border = (dash) => (dash.length === 0 ? "solid" : dash[0] < 4 ? "dotted" : "dashed");

  const stacked = (lines) => {
    const sums = [];
    let below = lines[0].values.map(() => 0);
    for (const line of lines) {
      below = line.values.map((value, index) => below[index] + (value ?? 0));
      sums.push(below);
    }
    return sums;
  };

  // The phases as shades behind the curves, and their names on top where there is room.
  const shade = (spec) => (chart) => {
    const {ctx, bbox} = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const [name, begin, end] of spec.phases) {
      const left = Math.max(bbox.left, chart.valToPos(begin, "x", true));
      const right = Math.min(bbox.left + bbox.width, chart.valToPos(end, "x", true));
      ctx.fillStyle = color(name);
      if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.restore();
  };

  const names = (spec) => (chart) => {
    const {ctx, bbox} = chart;
    ctx.save();
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    ctx.fillStyle = color("faint");
    for (const [name, begin, end] of spec.phases) {
      const left = Math.max(bbox.left, chart.valToPos(begin, "x", true));
      const right = Math.min(bbox.left + bbox.width, chart.valToPos(end, "x", true));
      if (right - left > ctx.measureText(name).width + 8) ctx.fillText(name, (left + right) / 2, bbox.top + 4);
    }
    ctx.restore();
  };

  const mark = (spec) => (chart) => {
    if (!spec.mark) return;
    const {ctx, bbox} = chart;
    const y = chart.valToPos(spec.mark[0], "y", true);
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = color("text");
    ctx.setLineDash([8, 5]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.textBaseline = "top";
    ctx.fillText(spec.mark[1], bbox.left + 6, y + 3);
    ctx.restore();
  };

  function draw(spec, place) {
    const values = spec.lines.map((line) => line.values);
    const ys = spec.stacked ? stacked(spec.lines) : values;
    const top = (most) => 1.12 * Math.max(most ?? 0, spec.mark?.[0] ?? 0, spec.unit === "events/s" ? 4 : 0) || 1;
    const y = spec.log
      ? {distr: 3, range: (_, least, most) => [(least ?? 1) / 1.5, (most ?? 10) * 2]}
      : {range: (_, least, most) => [0, top(most)]};
    const overTime = !spec.percentiles && !spec.x_label;
    const xAxis = spec.percentiles
      ? axis("share of requests answered within", {
          splits: (_, i, low, high) => [1, 2, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((x) => x >= low && x <= high),
          filter: (_, splits) => splits,
          values: shares,
        })
      : axis(spec.x_label || "time since the start, s", {values: (_, splits) => splits.map(text), space: 60});
    const yAxis = axis(spec.unit, {size: widthOfLabels, values: (_, splits) => splits.map(text)});
    if (spec.log) {
      yAxis.splits = (_, i, low, high) => logSteps(low, high);
      yAxis.filter = (_, splits) => splits;
    }
    const options = {
      width: place.clientWidth,
      height: HEIGHT,
      padding: [8, spec.percentiles ? 34 : 14, 0, 0], // half of "99.9999 %" may stand at the end
      scales: {x: spec.percentiles ? {distr: 3, time: false, range: (_, low, high) => [low, high]} : {time: false}, y},
      axes: [xAxis, yAxis],
      cursor: {
        sync: overTime ? {key: "time"} : undefined,
        drag: {x: true, y: false},
        points: {size: 6},
      },
      legend: {markers: {width: 3, dash: (_, i) => border(spec.lines[i - 1]?.dash ?? [])}},
      series: [
        {label: spec.percentiles ? "share" : overTime ? "time" : "value", value: (_, x) => (x == null ? "" : spec.percentiles ? share(x) : text(x) + (overTime ? " s" : ""))},
        ...spec.lines.map((line, index) => ({
          label: line.name,
          stroke: color(`c${line.color}`),
          fill: spec.stacked && index === 0 ? color(`c${line.color}`) + "99" : undefined,
          width: 1.75,
          dash: line.dash.length ? line.dash : undefined,
          points: {show: spec.x.length < 3},
          spanGaps: !overTime, // compared runs, and what was asked for, end at places of their own
          value: (_, value, i, at) => (at == null ? "" : text(values[index][at])),
        })),
      ],
      bands: spec.stacked
        ? spec.lines.slice(1).map((line, index) => ({series: [index + 2, index + 1], fill: color(`c${line.color}`) + "99"}))
        : [],
      hooks: {drawClear: [shade(spec)], draw: [names(spec), mark(spec)]},
    };
    return new uPlot(options, [spec.x, ...ys], place);
  }

  function drawAll() {
    for (const chart of charts) chart.destroy();
    charts = specs.map((spec, index) => draw(spec, places[index]));
    window.charts = charts;
  }

  drawAll();
  dark.addEventListener("change", drawAll);
  new ResizeObserver(() => {
    charts.forEach((chart, index) => {
      const width = places[index].clientWidth;
      if (width && width !== chart.width) chart.setSize({width, height: HEIGHT});
    });
  }).observe(document.querySelector(".charts"));
})();
