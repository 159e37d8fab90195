"use strict";
// What the charts of both pages share: the colors of their style sheet, and their axes for uPlot.

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function axis(label, more) {
  const font = "12px system-ui, sans-serif";
  const rule = {stroke: color("rule"), width: 1};
  return {stroke: color("faint"), font, labelFont: font, label, labelSize: 18, labelGap: 2, size: 26, grid: rule, ticks: {...rule, size: 4}, ...more};
}

// The size of a vertical axis, as wide as its longest label needs: 1,000,000 would lie on the title beside it.
function widthOfLabels(chart, labels, index, cycle) {
  const {font, ticks, gap, _size} = chart.axes[index];
  if (cycle > 1) return _size; // uPlot asks again until it settles
  chart.ctx.font = font[0];
  const longest = Math.max(0, ...(labels ?? []).map((label) => chart.ctx.measureText(label).width));
  return Math.max(62, ticks.size + gap + Math.ceil(longest / devicePixelRatio));
}
