"use strict";
(() => {
  const $ = (id) => document.getElementById("player" + (id ? "-" + id : ""));
  const data = JSON.parse($("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const maps = { field: bytes(data.maps.field), error: bytes(data.maps.error) };
  const typical = Math.max(0, data.trajectories.findIndex((one) => one.role === "median"));
  const state = { trajectory: typical, emulator: "", field: 0, frame: Infinity, timer: 0 }; // the last frame, where errors are largest
  let view = null; // the chosen trajectory, unpacked: truth and error as Float32Array

  async function inflate(text, bits) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return bits === 8 ? new Uint8Array(buffer) : new Uint16Array(buffer);
  }

  /* Whole numbers back to values; the largest number of all stands for "not finite". */
  function unpack(codes, shape, bits, low, high) {
    const top = 2 ** bits - 2, points = shape.slice(2).reduce((a, b) => a * b, 1), channels = shape[1];
    const values = new Float32Array(codes.length);
    for (let i = 0; i < codes.length; i++) {
      const channel = Math.floor(i / points) % channels;
      values[i] = codes[i] > top ? NaN : low[channel] + (high[channel] - low[channel]) * codes[i] / top;
    }
    return values;
  }

  async function open() {
    const one = data.trajectories[state.trajectory], error = one.errors[state.emulator];
    const truth = unpack(await inflate(one.truth, one.bits), one.shape, one.bits, one.low, one.high);
    const errors = unpack(await inflate(error.data, one.bits), one.shape, one.bits, error.scale.map((s) => -s), error.scale);
    view = { one, truth, errors, reach: error.reach, points: one.shape.slice(2).reduce((a, b) => a * b, 1) };
    state.frame = Math.min(state.frame, one.shape[0] - 1);
    $("frame").max = one.shape[0] - 1;
    layOut();
    draw();
  }

  const at = (values) => {
    const start = (state.frame * view.one.shape[1] + state.field) * view.points;
    return values.subarray(start, start + view.points);
  };

  function layOut() {
    const plane = view.one.shape.length === 4, panels = $("panels");
    const titles = plane ? ["truth", state.emulator, "error"] : ["truth (broad) and " + state.emulator, "error"];
    panels.className = plane ? "panels plane" : "panels";
    panels.replaceChildren(...titles.map((title, number) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      const canvas = document.createElement("canvas");
      caption.textContent = title;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", title + " at the chosen time");
      if (!plane) canvas.style.height = number === 0 ? "min(300px, 56vw)" : "130px";
      figure.append(caption, canvas);
      if (plane) figure.append(bar(number === 2 ? "error" : "field"));
      return figure;
    }));
  }

  /* A colour scale: its low end, its colours, its high end. */
  function bar(kind) {
    const scale = document.createElement("span"), ends = [document.createElement("span"), document.createElement("span")];
    const colours = document.createElement("i");
    scale.className = "scale";
    colours.style.background = data.gradients[kind];
    scale.append(ends[0], colours, ends[1]);
    return scale;
  }

  function draw() {
    if (!view) return;
    const { one, truth, errors, reach } = view, u = at(truth), e = at(errors), p = u.map((value, i) => value + e[i]);
    const canvases = [...$("panels").querySelectorAll("canvas")], low = one.low[state.field], high = one.high[state.field];
    const most = reach[state.field] || 1e-12;
    if (one.shape.length === 4) {
      const ends = [one.scale[state.field], one.scale[state.field], [-most, most]];
      [u, p, e].forEach((values, i) => paint(canvases[i], values, ...ends[i], i === 2 ? maps.error : maps.field));
      canvases.forEach((canvas, i) => [0, 1].forEach((end) => {
        canvas.nextSibling.querySelectorAll("span")[end].textContent = label(+ends[i][end].toPrecision(2));
      }));
    } else {
      const margin = (high - low || 1) * 0.08;
      plot(canvases[0], low - margin, high + margin, [
        { values: u, colour: "--truth", width: 5, alpha: 0.35 },
        { values: p, colour: colourOf(state.emulator), width: 2, alpha: 1 },
      ]);
      plot(canvases[1], -most * 1.1, most * 1.1, [{ values: e, colour: colourOf(state.emulator), width: 1.6, alpha: 1 }]);
    }
    $("time").textContent = "t = " + one.times[state.frame].toPrecision(3);
    $("frame").value = state.frame;
    $("frame").setAttribute("aria-valuetext", $("time").textContent);
  }

  const colourOf = (name) => "--series-" + (data.names.indexOf(name) % 7);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* A field of two dimensions: the first axis to the right, the second upwards. */
  function paint(canvas, values, low, high, map) {
    const [columns, rows] = view.one.shape.slice(2);
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let x = 0; x < columns; x++) for (let y = 0; y < rows; y++) {
      const value = values[x * rows + y], place = 4 * ((rows - 1 - y) * columns + x);
      if (Number.isNaN(value)) continue;
      const colour = 3 * Math.max(0, Math.min(255, Math.round(255 * (value - low) / (high - low || 1))));
      image.data[place] = map[colour];
      image.data[place + 1] = map[colour + 1];
      image.data[place + 2] = map[colour + 2];
      image.data[place + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  const label = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e-3 && size < 1e4) return String(+value.toPrecision(3)).replace("-", "\u2212");
    const [leading, exponent] = value.toExponential(0).split("e");
    const power = [...exponent.replace("+", "")].map((sign) => "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"["-0123456789".indexOf(sign)]);
    return leading.replace("-", "\u2212") + "\u00b710" + power.join("");
  };

  /* At most about five round numbers between two values. */
  function ticks(low, high) {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw), found = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  /* A field of one dimension as lines over its axis. */
  function plot(canvas, low, high, lines) {
    const box = canvas.getBoundingClientRect(), scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(box.width * scale);
    canvas.height = Math.round(box.height * scale);
    const context = canvas.getContext("2d"), left = 52, right = box.width - 6, top = 8, bottom = box.height - 22;
    const [start, end] = view.one.extent[0];
    const x = (value) => left + (right - left) * (value - start) / (end - start);
    const y = (value) => bottom - (bottom - top) * (value - low) / (high - low);
    context.scale(scale, scale);
    context.font = "12px " + css("--sans");
    context.lineWidth = 1;
    context.fillStyle = css("--muted");
    context.strokeStyle = css("--hair");
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of ticks(low, high)) {
      context.beginPath();
      context.moveTo(left, y(value));
      context.lineTo(right, y(value));
      context.stroke();
      context.fillText(label(value), left - 8, y(value));
    }
    context.textBaseline = "top";
    for (const value of ticks(start, end)) {
      context.textAlign = x(value) > right - 14 ? "right" : "center";
      context.fillText(label(value), x(value), bottom + 7);
    }
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, box.height - 14);
    context.clip();
    context.lineJoin = "round";
    for (const line of lines) {
      context.beginPath();
      let pen = false;
      line.values.forEach((value, i) => {
        if (Number.isNaN(value)) { pen = false; return; }
        const place = [x(start + (end - start) * i / (line.values.length - 1)), y(value)];
        if (pen) context.lineTo(...place); else context.moveTo(...place);
        pen = true;
      });
      context.strokeStyle = css(line.colour);
      context.lineWidth = line.width;
      context.globalAlpha = line.alpha;
      context.stroke();
    }
    context.restore();
  }

  function play(on) {
    clearInterval(state.timer);
    state.timer = 0;
    if (on && state.frame >= view.one.shape[0] - 1) { state.frame = 0; draw(); }
    if (on) state.timer = setInterval(() => {
      if (state.frame >= view.one.shape[0] - 1) { play(false); return; }
      state.frame += 1;
      draw();
    }, Math.max(60, 4000 / view.one.shape[0]));
    const button = $("play");
    button.setAttribute("aria-pressed", String(on));
    button.setAttribute("aria-label", on ? "Pause" : "Play");
    button.querySelector("span").textContent = on ? "Pause" : "Play";
    button.querySelector("path").setAttribute("d", on ? "M3 2.5h3.5v11H3zM9.5 2.5H13v11H9.5z" : "M4 2.5v11l9.5-5.5z");
  }

  function options(select, names, chosen) {
    select.replaceChildren(...names.map((name, number) => new Option(name, String(number), false, number === chosen)));
  }

  function offer() {
    const one = data.trajectories[state.trajectory], emulators = Object.keys(one.errors);
    if (!emulators.includes(state.emulator)) state.emulator = emulators[0];
    if (state.field >= one.fields.length) state.field = 0;
    options($("emulator"), emulators, emulators.indexOf(state.emulator));
    options($("field"), one.fields, state.field);
    $("field-label").hidden = one.fields.length === 1;
  }

  const several = new Set(data.trajectories.map((one) => one.task)).size > 1;
  options($("trajectory"), data.trajectories.map((one) => (several ? one.task + ", " : "") + one.role + ", no. " + one.index), typical);
  $("trajectory").addEventListener("change", (event) => { state.trajectory = +event.target.value; offer(); open(); });
  $("emulator").addEventListener("change", (event) => {
    state.emulator = Object.keys(data.trajectories[state.trajectory].errors)[+event.target.value];
    open();
  });
  $("field").addEventListener("change", (event) => { state.field = +event.target.value; draw(); });
  $("frame").addEventListener("input", (event) => { play(false); state.frame = +event.target.value; draw(); });
  $("play").addEventListener("click", () => play(!state.timer));
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  if (!("DecompressionStream" in window)) return;
  $("").hidden = false;
  $("note").hidden = true;
  offer();
  open().then(() => { $("").dataset.ready = "true"; });
})();
