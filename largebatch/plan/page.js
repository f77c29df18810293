(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("largebatch-data").textContent);
  const hidden = new Set();
  const touch = matchMedia("(pointer: coarse)").matches;
  const color = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const methodColor = (index) => color(`run${index % 8}`);

  // Equal curves lie on each other: thick below thin, so that every one is seen.
  const width = (index) => 1.5 + 0.9 * (data.methods.length - 1 - index);

  function lines(by, x, y, scale, value) {
    return data.methods.map((method, index) => {
      const points = data.along[by].filter((point) => point.method === method);
      return {
        type: "scatter",
        mode: "lines+markers",
        name: method,
        x: points.map((point) => point[x]),
        y: points.map((point) => scale * point[y]),
        visible: !hidden.has(index),
        hovertemplate: `${value}<extra>${method}</extra>`,
        line: { color: methodColor(index), width: width(index) },
        marker: { size: 3 + width(index) },
      };
    });
  }

  function bound(by, x) {
    const points = data.along[by].filter((point) => point.method === data.methods.at(-1));
    return {
      type: "scatter",
      mode: "lines",
      name: "bound",
      x: points.map((point) => point[x]),
      y: points.map((point) => 1e3 * Math.max(
        point.flops_bound_seconds, point.memory_bound_seconds, point.network_bound_seconds)),
      hovertemplate: "%{y:,.4~g} ms<extra>no step is shorter</extra>",
      line: { color: color("train"), width: 1.5, dash: "dot" },
    };
  }

  function timeline() {
    const streams = ["communication", "compute"];
    const shades = { forward: "run7", backward: "run0", optimizer: "run3" };
    const buckets = ["run1", "run4"];
    let count = 0;
    return data.events.map((event) => {
      const bucket = event.stream === "communication";
      const shade = bucket ? buckets[count++ % 2] : shades[event.name];
      return {
        type: "bar",
        orientation: "h",
        name: event.name,
        y: [streams.find((stream) => stream === event.stream)],
        base: [1e3 * event.start],
        x: [1e3 * (event.end - event.start)],
        width: 0.55,
        marker: { color: color(shade) },
        text: [bucket ? "" : event.name],
        textposition: "inside",
        insidetextanchor: "middle",
        hovertemplate: `${event.name}: ${(1e3 * event.start).toFixed(2)} to ` +
          `${(1e3 * event.end).toFixed(2)} ms` +
          (bucket ? `, ${(event.bytes / 1e6).toFixed(1)} MB` : "") + "<extra></extra>",
      };
    });
  }

  function layout(xTitle, yTitle, extra) {
    const axis = {
      gridcolor: color("grid"), linecolor: color("edge"), tickcolor: color("edge"),
      zeroline: false, automargin: true, fixedrange: touch,
    };
    const { xaxis = {}, yaxis = {}, ...rest } = extra;
    return {
      margin: { l: 44, r: 12, t: 12, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: color("soft") },
      showlegend: false,
      hovermode: "closest",
      hoverlabel: { bgcolor: color("card"), bordercolor: color("edge"), font: { color: color("ink") } },
      xaxis: {
        ...axis, title: { text: xTitle, standoff: 6 }, showgrid: false, ticks: "outside",
        showline: true, ...xaxis,
      },
      yaxis: { ...axis, title: { text: yTitle, standoff: 6 }, ...yaxis },
      ...rest,
    };
  }

  // A logarithmic axis with a tick at every second power of two.
  function doubling(by, key) {
    const values = [...new Set(data.along[by].map((point) => point[key]))].sort((a, b) => a - b);
    const ticks = values.filter((value, index) => values.length <= 8 || index % 2 === 0);
    return { type: "log", tickvals: ticks, ticktext: ticks.map((v) => v.toLocaleString("en")) };
  }

  const options = {
    displaylogo: false, responsive: true, plotlyServerURL: "", topojsonURL: "",
    doubleClick: "reset+autosize", displayModeBar: false,
  };

  function draw() {
    const share = { tickformat: "~%", range: [0, 1.03] };
    Plotly.react(
      "chart-efficiency", lines("nodes", "ranks", "efficiency", 1, "%{y:.1%} on %{x:,} GPUs"),
      layout("GPUs", "", { xaxis: doubling("nodes", "ranks"), yaxis: share }), options);
    Plotly.react(
      "chart-step",
      [...lines("nodes", "ranks", "step_seconds", 1e3, "%{y:,.4~g} ms on %{x:,} GPUs"),
        bound("nodes", "ranks")],
      layout("GPUs", "", {
        xaxis: doubling("nodes", "ranks"), yaxis: { rangemode: "tozero", tickformat: "~s" },
      }), options);
    Plotly.react(
      "chart-batch",
      lines("batch", "batch_per_rank", "efficiency", 1, "%{y:.1%} at %{x} samples a rank"),
      layout("samples a rank", "", {
        xaxis: doubling("batch", "batch_per_rank"), yaxis: share,
      }), options);
    Plotly.react(
      "chart-timeline", timeline(),
      layout("ms", "", { barmode: "overlay", bargap: 0.3, yaxis: { showgrid: false } }), options);
    for (const swatch of document.querySelectorAll(".swatch")) {
      swatch.style.background = methodColor(Number(swatch.dataset.run));
    }
  }

  for (const button of document.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      const index = Number(button.dataset.toggle);
      if (!hidden.delete(index)) hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      draw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
