(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("largebatch-data").textContent);
  const many = data.runs.length > 1;
  const state = { x: "epoch", log: false, norm: "ratio", hidden: new Set() };
  const axisNames = { epoch: "epochs", samples: "samples", step: "steps" };
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const touch = matchMedia("(pointer: coarse)").matches;

  const color = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const runColor = (index) => color(`run${index % 8}`);
  const dash = (index) => dashes[Math.floor(index / 8) % dashes.length];

  // Run names are free text: plotly reads a little HTML in its labels.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // Keys are foreign text, "constructor" among them.
  const seriesOf = (run, split, key) =>
    Object.hasOwn(run.series[split], key) ? run.series[split][key] : null;

  function quantile(sorted, share) {
    return sorted[Math.round(share * (sorted.length - 1))];
  }

  function line(index, series, name, extra) {
    return {
      type: "scatter",
      mode: "lines",
      x: series[state.x],
      y: series.value,
      name,
      visible: !state.hidden.has(index),
      hovertemplate: `%{y:,.4~g}<extra>${name}</extra>`,
      ...extra,
    };
  }

  // Phases one above the other, the last on top.
  function stacked(chart) {
    return chart.parts.flatMap(([key, name], part) => {
      const series = seriesOf(data.runs[0], "train", key);
      if (!series) return [];
      const shade = runColor(part);
      const extra = { stackgroup: "step", line: { width: 0.5, color: shade }, fillcolor: shade };
      return [line(0, series, name, extra)];
    });
  }

  function perRank(chart) {
    return data.runs.flatMap((run, index) =>
      Object.entries(run.hardware[chart.key] || {}).map(([rank, series], place) =>
        line(index, series, many ? `${plain(run.name)} · ${rank}` : rank, {
          line: { width: 1.5, color: runColor(many ? index : place), simplify: false },
          hovertemplate: `${chart.unit === "percent" ? "%{y:.1%}" : "%{y:,.4~g}"}`,
        })));
  }

  // An interval without an upper end goes up to the top of the chart.
  function band(chart) {
    return data.runs.flatMap((run, index) => {
      const [low, high] = chart.band.map((key) => seriesOf(run, "train", key));
      if (!low) return [];
      const ends = new Map(high ? high.step.map((step, place) => [step, high.value[place]]) : []);
      const tops = low.step.map((step) => ends.get(step) ?? null);
      const most = Math.max(...low.value, ...tops.filter((top) => top !== null)) * 1e3;
      const lower = low.value.map((value) => Math.max(value, most / 1e9));  // the axis is logarithmic
      const edge = {
        line: { width: 0, color: runColor(index), simplify: false },
        fillcolor: `${runColor(index)}33`,
      };
      const name = many ? plain(run.name) : "";
      const upper = { ...low, value: tops.map((top) => top ?? most) };
      return [
        line(index, { ...low, value: lower }, `${name} from`.trim(), edge),
        line(index, upper, `${name} to`.trim(), {
          ...edge,
          fill: "tonexty",
          customdata: tops.map((top) => (top === null ? "no upper end" : top.toPrecision(4))),
          hovertemplate: `%{customdata}<extra>${`${name} to`.trim()}</extra>`,
        }),
      ];
    });
  }

  function beside(chart) {
    const [key, name] = chart.beside;
    return data.runs.flatMap((run, index) => {
      const series = seriesOf(run, "train", key);
      if (!series) return [];
      return [line(index, series, many ? `${plain(run.name)} · ${name}` : name, {
        line: {
          width: 1.5, color: color(many ? `run${index % 8}` : "soft"), dash: "dot", shape: "vh",
          simplify: false,
        },
      })];
    });
  }

  function traces(chart) {
    if (chart.parts.length) return stacked(chart);
    if (chart.ranks) return perRank(chart);
    if (chart.band.length) return [...band(chart), ...values(chart), ...beside(chart)];
    return chart.beside.length ? [...values(chart), ...beside(chart)] : values(chart);
  }

  function values(chart) {
    const x = chart.log_steps ? "step" : state.x;
    const drawn = [];
    for (const split of ["train", "val"]) {
      data.runs.forEach((run, index) => {
        const series = seriesOf(run, split, chart.key);
        if (!series) return;
        const alone = !data.runs.some((other) => seriesOf(other, "val", chart.key));
        const strong = split === "val" || alone;
        const value = chart.unit === "percent" ? "%{y:.2%}" : "%{y:,.4~g}";
        const label = [many ? plain(run.name) : "", alone ? "" : split].filter(Boolean).join(" · ");
        drawn.push({
          type: "scatter",
          mode: strong && !chart.steps && series.value.length <= 60 ? "lines+markers" : "lines",
          x: series[x],
          y: series.value,
          name: label || plain(chart.title),
          visible: !state.hidden.has(index),
          hovertemplate: `${value}<extra>${label}</extra>`,
          opacity: strong ? 1 : many ? 0.45 : 0.85,
          line: {
            color: strong || many ? runColor(index) : color("train"),
            width: strong ? 2.2 : 1.2,
            dash: dash(index),
            shape: chart.steps ? "vh" : "linear",
            simplify: false,
          },
          marker: { size: 5 },
        });
      });
    }
    return drawn;
  }

  // Rare slow steps (the first, one after a pause) may leave the top.
  function stackedRange(seen) {
    if (!seen.length) return null;
    const sums = seen[0].y.map((_, place) =>
      seen.reduce((sum, trace) => sum + (trace.y[place] || 0), 0));
    return [0, quantile(sums.sort((a, b) => a - b), 0.985) * 1.15 || 1];
  }

  // Decades around the values and the batch; the ends of intervals may leave the chart.
  function bandRange(seen) {
    const firm = seen.filter((trace) => trace.line.width > 0);
    const lows = seen.filter((trace) => !trace.line.width && !trace.fill);
    const points = [...firm, ...lows].flatMap((trace) => trace.y).filter((value) => value > 0);
    if (!points.length) return null;
    points.sort((a, b) => a - b);
    const top = Math.max(quantile(points, 0.98), ...firm.map((trace) => Math.max(...trace.y)));
    const low = Math.max(quantile(points, 0.05), top / 1e4);
    return [Math.log10(low) - 0.3, Math.log10(top) + 0.5];
  }

  // The range that shows how runs end: a first point far off must not flatten all others.
  function range(chart, drawn) {
    const seen = drawn.filter((trace) => trace.visible);
    if (chart.parts.length) return stackedRange(seen);
    if (chart.band.length) return bandRange(seen);
    const values = seen.flatMap((trace) => trace.y).sort((a, b) => a - b);
    if (!values.length) return null;
    let low = values[0];
    let high = values[values.length - 1];
    const strong = seen.filter((trace) => trace.line.width > 2);
    const telling = strong.length ? strong : seen;
    const ends = (share) =>
      telling.map((trace) => quantile([...trace.y].sort((a, b) => a - b), share));
    if (chart.key === "loss" || chart.key === "samples_per_second") {
      high = quantile(values, 0.985);
    } else if (chart.better === "lower") {
      high = Math.max(...ends(0.9), low + (chart.unit === "percent" ? 0.04 : 0));
    } else if (chart.unit === "percent" && !chart.ranks) {
      const points = telling.flatMap((trace) => trace.y).sort((a, b) => a - b);
      low = Math.min(quantile(points, 0.1), high - 0.04);
    } else if (chart.better === "higher") {
      low = Math.min(...ends(0.1));
    }
    const logarithmic = chart.log_choice && state.log;
    if (logarithmic) {
      const positive = values.filter((value) => value > 0);
      if (!positive.length) return null;
      const top = positive[positive.length - 1];
      return [Math.log10(Math.max(positive[0], top / 1e4)) - 0.1, Math.log10(top) + 0.1];
    }
    if (chart.floor && low >= 0) low = 0;
    const pad = (high - low || Math.abs(high) || 1) * 0.08;
    // What calls itself a fraction may be none.
    if (chart.unit === "percent" && low >= 0 && high <= 1) {
      return [Math.max(0, low - pad), Math.min(1, high + pad / 2) + 0.004];
    }
    return [low === 0 && chart.floor ? 0 : low - pad, high + pad];
  }

  // One horizontal range for all charts, so that they can be read one above the other.
  function span(chart) {
    const key = chart.log_steps ? "step" : state.x;
    let last = 0;
    for (const run of data.runs) {
      for (const split of Object.values(run.series)) {
        for (const series of Object.values(split)) last = Math.max(last, series[key].at(-1));
      }
    }
    return chart.log_steps ? [-0.05, Math.log10(Math.max(last, 2)) + 0.05] : [0, last * 1.015];
  }

  function layout(chart, drawn) {
    const small = chart.group !== "";
    const logarithmic = chart.log_axis || (chart.log_choice && state.log);
    const vertical = range(chart, drawn);
    const decades = logarithmic && vertical ? vertical[1] - vertical[0] : 0;
    const axis = {
      gridcolor: color("grid"),
      linecolor: color("edge"),
      zeroline: false,
      tickcolor: color("edge"),
      automargin: true,
      fixedrange: touch,
    };
    const x = chart.log_steps ? "step" : state.x;
    const name = chart.log_steps ? "steps, log" : axisNames[x];
    return {
      margin: { l: 44, r: 12, t: 12, b: small ? 34 : 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: small ? 11 : 12, color: color("soft") },
      showlegend: chart.parts.length > 0 || (chart.ranks && drawn.length > 1),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
      hovermode: "x unified",
      hoverlabel: {
        bgcolor: color("card"), bordercolor: color("edge"), font: { color: color("ink"), size: 12 },
        namelength: 40,
      },
      dragmode: touch ? false : "zoom",
      xaxis: {
        ...axis,
        title: { text: name, standoff: 6 },
        type: chart.log_steps ? "log" : "linear",
        range: span(chart),
        hoverformat: x === "epoch" ? ".4~g" : ",d",
        tickformat: x === "epoch" ? "" : "~s",
        dtick: chart.log_steps ? 1 : undefined,
        unifiedhovertitle: { text: x === "samples" ? "%{x} samples" : `${x} %{x}` },
        showgrid: false,
        ticks: "outside",
        showline: true,
      },
      yaxis: {
        ...axis,
        type: logarithmic ? "log" : "linear",
        range: vertical,
        tickformat: { percent: "~%", count: "~s" }[chart.unit] || "~g",
        ...(logarithmic ? { dtick: decades > 2.5 ? 1 : "D2" } : { nticks: small ? 4 : 6 }),
      },
    };
  }

  const options = {
    displaylogo: false,
    responsive: true,
    plotlyServerURL: "",
    topojsonURL: "",
    doubleClick: "reset+autosize",
    displayModeBar: false,
  };

  // Layer against samples: the colour is the logarithm, so that a factor looks alike everywhere.
  function drawLayers(id, layers, values) {
    const box = document.getElementById(id);
    const logs = values.map((row) => row.map((value) => (value > 0 ? Math.log10(value) : null)));
    const seen = logs.flat().filter((value) => value !== null);
    const [low, high] = seen.length
      ? [seen.reduce((a, b) => Math.min(a, b)), seen.reduce((a, b) => Math.max(a, b))] : [0, 1];
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => low + share * (high - low));
    const axis = { automargin: true, fixedrange: touch, tickcolor: color("edge"), zeroline: false };
    const height = 90 + Math.max(7, Math.min(16, 900 / values.length)) * values.length;
    box.style.height = `${height}px`;
    Plotly.react(box, [{
      type: "heatmap",
      x: layers[state.x],
      y: layers.names.map(plain),
      z: logs,
      customdata: values,
      zmin: low,
      zmax: high > low ? high : low + 1,
      colorscale: "Viridis",
      hoverongaps: false,
      hovertemplate: "%{y}<br>%{x:,}: %{customdata:.4~g}<extra></extra>",
      colorbar: {
        thickness: 12, outlinewidth: 0, tickfont: { color: color("soft") },
        tickvals: ticks, ticktext: ticks.map((value) => Number((10 ** value).toPrecision(2))),
      },
    }], {
      height,
      margin: { l: 44, r: 12, t: 12, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: color("soft") },
      hoverlabel: {
        bgcolor: color("card"), bordercolor: color("edge"), font: { color: color("ink"), size: 12 },
      },
      dragmode: touch ? false : "zoom",
      xaxis: {
        ...axis, title: { text: axisNames[state.x], standoff: 6 }, ticks: "outside",
        tickformat: state.x === "epoch" ? "" : "~s",
      },
      yaxis: { ...axis, type: "category", autorange: "reversed", tickfont: { size: 10 } },
    }, options);
  }

  // A point an eigenvalue: most directions share those near zero, few the largest.
  function drawSpectrum(id, spectrum) {
    const box = document.getElementById(id);
    const axis = {
      automargin: true, fixedrange: touch, tickcolor: color("edge"), gridcolor: color("edge"),
      zerolinecolor: color("edge"),
    };
    box.style.height = "320px";
    Plotly.react(box, [{
      type: "scatter",
      mode: "markers",
      x: spectrum[state.x],
      y: spectrum.value,
      customdata: spectrum.weight,
      marker: {
        size: 7,
        color: spectrum.weight.map(Math.log10),
        cmin: -6,
        cmax: 0,
        colorscale: "Viridis",
        colorbar: {
          thickness: 12, outlinewidth: 0, tickfont: { color: color("soft") },
          tickvals: [-6, -4, -2, 0], ticktext: ["10⁻⁶", "10⁻⁴", "1%", "all"],
        },
      },
      hovertemplate: "%{y:.4~g}<br>share %{customdata:.2~g}<extra></extra>",
    }], {
      height: 320,
      margin: { l: 44, r: 12, t: 12, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: color("soft") },
      hovermode: "closest",
      hoverlabel: {
        bgcolor: color("card"), bordercolor: color("edge"), font: { color: color("ink"), size: 12 },
      },
      dragmode: touch ? false : "zoom",
      xaxis: {
        ...axis, title: { text: axisNames[state.x], standoff: 6 }, ticks: "outside",
        tickformat: state.x === "epoch" ? "" : "~s",
      },
      yaxis: { ...axis, title: { text: "eigenvalue" }, tickformat: "~g" },
    }, options);
  }

  function draw() {
    data.runs.forEach((run, index) => {
      if (run.spectrum) drawSpectrum(`spectrum-${index}`, run.spectrum);
      if (run.layers) drawLayers(`layers-${index}`, run.layers, run.layers[state.norm]);
      if (run.noise) drawLayers(`noise-${index}`, run.noise, run.noise.noise);
    });
    for (const chart of data.charts) {
      const drawn = traces(chart);
      Plotly.react(`chart-${chart.id}`, drawn, layout(chart, drawn), options);
    }
    for (const swatch of document.querySelectorAll(".swatch")) {
      swatch.style.background = runColor(Number(swatch.dataset.run));
    }
  }

  function press(buttons, pressed) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
  }

  for (const attribute of ["x", "log", "norm"]) {
    const buttons = document.querySelectorAll(`[data-${attribute}]`);
    for (const button of buttons) {
      button.addEventListener("click", () => {
        const value = button.dataset[attribute];
        state[attribute] = attribute === "log" ? Boolean(value) : value;
        press(buttons, button);
        draw();
      });
    }
  }

  for (const button of document.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.toggle);
      if (!state.hidden.delete(run)) state.hidden.add(run);
      button.setAttribute("aria-pressed", String(!state.hidden.has(run)));
      draw();
    });
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
