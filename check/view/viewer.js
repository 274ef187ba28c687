"use strict";
/* The viewer: a history as rows of bars, drawn on a canvas; only what can be seen is drawn.

   A request is its index in the columns. Two units of x: "places" are where the layout puts an event (its rank, or its
   time), pixels are where the window shows it. Nothing here asks anything of a network. */
(() => {
  const AXIS_PX = 26, SPAN_PX = 24, LANE_GAP_PX = 3, ROW_PAD_MIN_PX = 8, ROW_PAD_ARROWS_PX = 34, BAR_MIN_PX = 3, TEXT_MIN_PX = 26, OVERVIEW_PX = 38;
  const LANE_MIN_PX = 20, LANE_ROOMY_PX = 38, LANE_MAX_PX = 48, STEPPED_LANE_PX = 62, POINTS_MAX = 1500, BLOCKS_MAX = 512;
  const UNIT_PX = 22, LABEL_MAX_PX = 200, OPENED = 40, BELOW_SHARE = 0.36, BELOW_SHARE_FINE = 0.25, BELOW_MIN_PX = 170, EDGES_MAX = 40, NEAR_PX = 3, FEW = 80, ROUNDS = 4, GUTTER_PX = 110, LINES_MAX = 60;
  const CHANGES = new Set(["write", "zero", "trim"]);
  const SHORT = { read: "R", write: "W", zero: "Z", trim: "T", cache: "C", flush: "F", status: "S" };
  const UNRANGED = new Set(["flush"]);

  const data = JSON.parse(document.getElementById("data").textContent);
  const tables = data.requests.tables;
  const requests = decoded(data.requests);
  const stepsOf = stepsByRequest(data.steps);
  const conflict = new Set(data.conflict);
  const blocks = blocksByUse();
  const blockRank = new Map(blocks.map(([block], rank) => [block, rank]));
  const chains = allChains();
  const ROW_PAD_PX = data.edges.length ? ROW_PAD_ARROWS_PX : ROW_PAD_MIN_PX;

  const state = {
    cropped: data.around.length > 0,
    mode: "order",
    colour: "block",
    client: -1,
    block: -1,
    chain: longestChain(),
    selected: -1,
    step: -1,
    hovered: -1,
    matches: [],
    match: -1,
    matched: null,
    from: 0,
    to: 1,
    top: 0,
  };
  let layout = null;
  let theme = null;
  let visible = [];
  let drawAsked = false;

  const $ = (id) => document.getElementById(id);
  const canvas = $("timeline"), overview = $("overview"), tip = $("tip");
  const pen = canvas.getContext("2d"), overviewPen = overview.getContext("2d");

  // The data.

  function decoded(columns) {
    const count = columns.op.length;
    const call = new Float64Array(count), ret = new Float64Array(count);
    let at = 0, last = 0;
    for (let i = 0; i < count; i++) {
      at += columns.call[i];
      call[i] = at;
      last = Math.max(last, at, columns.took[i] < 0 ? at : at + columns.took[i]);
    }
    for (let i = 0; i < count; i++) ret[i] = columns.took[i] < 0 ? last : call[i] + columns.took[i];
    return { ...columns, count, call, ret, last };
  }

  function stepsByRequest(steps) {
    const found = new Map();
    steps.request.forEach((request, at) => {
      if (!found.has(request)) found.set(request, []);
      found.get(request).push(at);
    });
    return found;
  }

  function op(i) { return tables.op[requests.op[i]]; }
  function client(i) { return tables.client[requests.client[i]]; }
  function outcome(i) { return tables.outcome[requests.outcome[i]]; }
  function isRanged(i) { return !UNRANGED.has(op(i)); }
  function isPending(i) { return requests.took[i] < 0; }
  function isFailed(i) { return outcome(i) !== "ok" && outcome(i) !== "pending"; }
  function nameOf(i) { return `${client(i)} #${requests.id[i]}`; }
  function firstBlock(i) { return Math.floor(requests.offset[i] / data.device.block_size); }
  function lastBlock(i) {
    return Math.floor((requests.offset[i] + Math.max(1, requests.length[i]) - 1) / data.device.block_size);
  }

  /* The value as runs of [name, bytes]; a written one is one run. */
  function runs(i) {
    const value = requests.value[i];
    if (value < 0) return [];
    const flat = tables.value[value];
    if (flat.length === 1) return [[tables.name[flat[0]], requests.length[i]]];
    const found = [];
    for (let at = 0; at < flat.length; at += 2) found.push([tables.name[flat[at]], flat[at + 1]]);
    return found;
  }

  function valueText(i) {
    const found = runs(i);
    return found.length === 1 ? found[0][0] : found.map(([name, length]) => `${name}:${sizeText(length)}`).join(" ");
  }

  function blocksByUse() {
    const used = new Map();
    for (let i = 0; i < requests.count; i++) {
      if (!isRanged(i)) continue;
      for (let b = firstBlock(i), end = Math.min(lastBlock(i), b + BLOCKS_MAX); b <= end; b++) used.set(b, (used.get(b) || 0) + 1);
    }
    const most = [...used].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, BLOCKS_MAX);
    return most.sort((a, b) => a[0] - b[0]);
  }

  /* Orders that can be shown: of all requests, or the longest of those in conflict. */
  function allChains() {
    const named = data.chains.map((chain) => ({
      ...chain, refused: [],
      name: chain.range ? `of bytes ${sizeText(chain.range[0])}+${sizeText(chain.range[1])}` : "that explains all",
    }));
    data.partials.forEach((chain, at) => named.push({ ...chain, name: `longest order ${data.partials.length > 1 ? at + 1 : ""}`.trim() }));
    return named;
  }

  function longestChain() {
    return chains.reduce((best, chain, at) => (best < 0 || chain.order.length > chains[best].order.length ? at : best), -1);
  }

  // Text.

  function sizeText(bytes) {
    const units = ["", "K", "M", "G", "T", "P"];
    let at = 0;
    while (bytes && bytes % 1024 === 0 && at < units.length - 1) { bytes /= 1024; at++; }
    return `${bytes}${units[at]}`;
  }

  function timeText(time, step = 0) {
    if (data.unit === "step") return `${trimmed((time + Number(data.requests.origin)).toFixed(1))}`;
    const size = Math.max(Math.abs(time), step);
    const [scale, unit] = size >= 1e9 ? [1e9, "s"] : size >= 1e6 ? [1e6, "ms"] : size >= 1e3 ? [1e3, "µs"] : [1, "ns"];
    const digits = step ? Math.max(0, Math.min(9, Math.ceil(-Math.log10(step / scale) - 1e-9))) : 9;
    return `${trimmed((time / scale).toFixed(scale === 1 ? 0 : digits))} ${unit}`;
  }

  function trimmed(text) { return text.includes(".") ? text.replace(/\.?0+$/, "") : text; }
  function rangeText(i) { return isRanged(i) ? `${sizeText(requests.offset[i])}+${sizeText(requests.length[i])}` : ""; }

  function outcomeText(i) {
    if (isPending(i)) return "never answered";
    return isFailed(i) ? `failed: ${outcome(i)}` : "ok";
  }

  /* What a bar says, the longest first. */
  function labels(i) {
    const error = isFailed(i) ? ` ${outcome(i)}` : "";
    const kind = op(i), value = valueText(i), where = rangeText(i);
    const names = [...new Set(runs(i).map(([name]) => name))].join(", "), arrow = kind === "read" ? "→ " : "";
    const said = (what) => (what ? `${kind} ${arrow}${what}` : kind);
    return [`${said(value)}  ${where}${error}`, `${said(names)}  ${where}${error}`, `${said(names)}${error}`,
      `${SHORT[kind]} ${names}${error}`.trim(), names || kind, SHORT[kind]];
  }

  // The layout: which requests are shown, in which lane of which row, and where each event has its place.

  function passes(i) {
    if (state.client >= 0 && requests.client[i] !== state.client) return false;
    if (state.block >= 0 && (!isRanged(i) || firstBlock(i) > state.block || lastBlock(i) < state.block)) return false;
    return true;
  }

  function shownRequests() {
    const from = state.cropped ? data.around : null;
    const found = [];
    const count = from ? from.length : requests.count;
    for (let at = 0; at < count; at++) {
      const i = from ? from[at] : at;
      if (passes(i)) found.push(i);
    }
    return found.sort((a, b) => requests.call[a] - requests.call[b] || a - b);
  }

  /* Lanes: within a client's row, requests in flight side by side stand below each other. */
  function rowsOf(shown) {
    const rows = new Map();
    for (const i of shown) {
      const key = requests.client[i];
      if (!rows.has(key)) rows.set(key, { client: key, lanes: [], ends: [] });
      const row = rows.get(key);
      let lane = row.ends.findIndex((end) => end <= requests.call[i]);
      if (lane < 0) lane = row.lanes.push([]) - 1;
      row.lanes[lane].push(i);
      row.ends[lane] = isPending(i) ? Infinity : requests.ret[i] + (requests.ret[i] === requests.call[i] ? 1e-9 : 0);
    }
    return [...rows.values()].sort((a, b) => a.client - b.client);
  }

  function arranged() {
    const shown = shownRequests();
    const isShown = new Uint8Array(requests.count);
    for (const i of shown) isShown[i] = 1;
    const rows = rowsOf(shown);
    const lanes = [];
    const laneOf = new Int32Array(requests.count).fill(-1);
    rows.forEach((row, at) => row.lanes.forEach((members, lane) => {
      for (const i of members) laneOf[i] = lanes.length;
      lanes.push({ row: at, lane, members });
    }));
    const chain = chainShown(isShown);
    const place = state.mode === "time" ? (time) => time : ranks(shown, chain);
    const x0 = new Float64Array(requests.count), x1 = new Float64Array(requests.count);
    const room = data.unit === "step" ? 0.42 : 0;  // a step at a bar's end is inside of it
    for (const i of shown) { x0[i] = place(requests.call[i]) - room; x1[i] = place(requests.ret[i]) + room; }
    const result = { shown, isShown, rows, lanes, laneOf, chain, place, x0, x1, spans: data.spans };
    result.pointX = chain ? pointPlaces(chain, result) : [];
    result.first = shown.length ? x0[shown[0]] : 0;
    result.last = shown.reduce((latest, i) => Math.max(latest, x1[i]), result.first + 1);
    return result;
  }

  function chainShown(isShown) {
    if (state.chain < 0) return null;
    const chain = chains[state.chain];
    const order = [], points = [], numbers = [];
    chain.order.forEach((i, at) => {
      if (!isShown[i]) return;
      order.push(i);
      points.push(requests.call[i] + chain.points[at]);
      numbers.push(at + 1);
    });
    return { order, points, numbers, refused: chain.refused.filter(([i]) => isShown[i]) };
  }

  /* Each time at which something shown happens gets some room, and each request enough for what its bar says; times
     between two of them lie between. */
  function ranks(shown, chain) {
    const distinct = distinctTimes(shown, chain);
    let places = roomy(shown, distinct, UNIT_PX);
    // A few are stretched until all they say has room, if it can have.
    const width = canvas.clientWidth - GUTTER_PX;
    for (let round = 0; round < ROUNDS && shown.length <= FEW; round++) {
      places = roomy(shown, distinct, Math.max(4, width / (places[places.length - 1] + 2)));
    }
    return Object.assign(rankIn(distinct, places), { distinct, places });
  }

  /* The places of times, if a place has so many pixels. */
  function roomy(shown, distinct, unitPx) {
    const count = distinct.length, places = new Float64Array(count);
    const ended = shown.filter((i) => !isPending(i)).sort((a, b) => requests.ret[a] - requests.ret[b]);
    let next = 0;
    for (let at = 0; at < count; at++) {
      places[at] = at ? places[at - 1] + 1 : 0;
      for (; next < ended.length && requests.ret[ended[next]] === distinct[at]; next++) {
        const i = ended[next], call = lowerBound(distinct, requests.call[i]);
        if (call < at) places[at] = Math.max(places[at], places[call] + labelPx(i) / unitPx);
      }
    }
    return places;
  }

  function rankIn(distinct, places) {
    const count = distinct.length;
    return (time) => {
      const low = lowerBound(distinct, time);
      if (low === count) return count ? places[count - 1] + 0.5 : 0;
      if (distinct[low] === time) return places[low];
      if (low === 0) return -0.5;
      const share = (time - distinct[low - 1]) / (distinct[low] - distinct[low - 1]);
      return places[low - 1] + share * (places[low] - places[low - 1]);
    };
  }

  function distinctTimes(shown, chain) {
    const times = new Float64Array(shown.length * 2 + (chain ? chain.points.length : 0) + data.steps.at.length);
    let at = 0;
    for (const i of shown) { times[at++] = requests.call[i]; times[at++] = requests.ret[i]; }
    if (chain) for (const point of chain.points) times[at++] = point;
    for (const step of data.steps.at) times[at++] = step;
    times.sort();
    let count = 0;
    for (let each = 0; each < at; each++) if (each === 0 || times[each] !== times[count - 1]) times[count++] = times[each];
    return times.subarray(0, count);
  }

  function labelPx(i) {
    const isFew = state.cropped, text = labels(i)[isFew && !conflict.has(i) ? 3 : 2];
    return Math.min(isFew && !conflict.has(i) ? LABEL_MAX_PX / 2 : LABEL_MAX_PX, text.length * theme.charPx + 16);
  }

  /* Points at one instant are drawn a little apart, so that their order shows. */
  function pointPlaces(chain, { place, x1 }) {
    const places = chain.points.map(place);
    const room = state.mode === "order" ? 0.7 : 0;
    for (let at = 0; at < places.length;) {
      let end = at + 1;
      while (end < places.length && places[end] === places[at]) end++;
      for (let k = at + 1; k < end; k++) places[k] = Math.min(places[at] + room * (k - at) / (end - at), Math.max(x1[chain.order[k]], places[at]));
      at = end;
    }
    return places;
  }

  function lowerBound(sorted, value, key = null) {
    let low = 0, high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((key ? key(sorted[middle]) : sorted[middle]) < value) low = middle + 1; else high = middle;
    }
    return low;
  }

  function relayout() {
    layout = arranged();
    measure();
    $("nothing").hidden = layout.shown.length > 0;
    clampView();
    ask();
  }

  /* Heights: lanes are as high as there is room for, within limits; below the picture there is room for the text. */
  function measure() {
    const whole = $("left").clientHeight - OVERVIEW_PX;
    layout.top = AXIS_PX + layout.spans.length * SPAN_PX + (layout.spans.length ? 6 : 0);
    const share = conflict.size || data.steps.at.length ? BELOW_SHARE : BELOW_SHARE_FINE;
    const most = whole - Math.max(BELOW_MIN_PX, whole * share);
    const room = most - layout.top - layout.rows.length * ROW_PAD_PX;
    const roomy = data.steps.at.length ? STEPPED_LANE_PX : LANE_MAX_PX;
    layout.laneHeight = Math.max(LANE_MIN_PX, Math.min(roomy, Math.floor(room / Math.max(1, layout.lanes.length))));
    layout.isRoomy = layout.laneHeight >= LANE_ROOMY_PX;
    let y = 0;
    for (const row of layout.rows) {
      row.y = y;
      row.height = row.lanes.length * layout.laneHeight + ROW_PAD_PX;
      y += row.height;
    }
    for (const lane of layout.lanes) lane.y = layout.rows[lane.row].y + ROW_PAD_PX / 2 + lane.lane * layout.laneHeight;
    layout.height = y;
    canvas.style.height = `${Math.max(120, Math.min(most, layout.top + y))}px`;
    layout.width = canvas.clientWidth;
    layout.left = gutter();
  }

  function gutter() {
    pen.font = `600 13px ${theme.ui}`;
    const names = [...layout.rows.map((row) => tables.client[row.client]), ...layout.spans.map(([name]) => name)];
    const widest = Math.max(40, ...names.slice(0, 500).map((name) => pen.measureText(name).width));
    return Math.min(190, Math.ceil(widest) + 26);
  }

  // From places to pixels, and back.

  function pixelsPerPlace() { return (layout.width - layout.left) / (state.to - state.from); }
  function toPixel(place) { return layout.left + (place - state.from) * pixelsPerPlace(); }
  function toPlace(pixel) { return state.from + (pixel - layout.left) / pixelsPerPlace(); }

  function rectOf(i) {
    const lane = layout.lanes[layout.laneOf[i]];
    const left = toPixel(layout.x0[i]), right = toPixel(layout.x1[i]);
    return {
      x: left,
      y: layout.top + lane.y - state.top,
      width: Math.max(BAR_MIN_PX, right - left - (right - left > 8 ? 1 : 0)),
      height: layout.laneHeight - LANE_GAP_PX,
    };
  }

  function extent() {
    const share = (layout.last - layout.first) * 0.03;
    const room = state.mode === "order" ? Math.max(0.8, Math.min(share, 2)) : Math.max(share, 1);
    return [layout.first - room, layout.last + room];
  }

  function clampView() {
    const [first, last] = extent();
    const least = state.mode === "order" ? 3 : Math.max(4, (last - first) * 1e-7);
    let span = Math.max(least, Math.min(state.to - state.from, last - first));
    if (!Number.isFinite(span)) span = last - first;
    state.from = Math.max(first, Math.min(state.from, last - span));
    state.to = state.from + span;
    if (state.to > last) { state.to = last; state.from = last - span; }
    state.top = Math.max(0, Math.min(state.top, layout.height - (canvas.clientHeight - layout.top)));
  }

  function zoom(factor, pixel = layout.left + (layout.width - layout.left) / 2) {
    const at = toPlace(Math.max(pixel, layout.left));
    state.from = at - (at - state.from) / factor;
    state.to = at + (state.to - at) / factor;
    clampView();
    ask();
  }

  function pan(pixels, down = 0) {
    const places = pixels / pixelsPerPlace();
    state.from += places;
    state.to += places;
    state.top += down;
    clampView();
    ask();
  }

  function fit() {
    [state.from, state.to] = extent();
    clampView();
    ask();
  }

  /* The window where it shows these requests, and a little around them. */
  function show(list) {
    const shown = list.filter((i) => layout.isShown[i]);
    if (!shown.length) return fit();
    const first = Math.min(...shown.map((i) => layout.x0[i])), last = Math.max(...shown.map((i) => layout.x1[i]));
    const room = Math.max((last - first) * 0.12, state.mode === "order" ? 1 : (layout.last - layout.first) * 1e-6);
    state.from = first - room;
    state.to = last + room;
    clampView();
    return ask();
  }

  /* Just far enough, and near enough, that a request can be seen. */
  function reveal(i) {
    if (!layout.isShown[i]) return;
    if (rectOf(i).width <= BAR_MIN_PX * 2) {
      const wanted = state.mode === "order" ? readable() : Math.max(4, (layout.x1[i] - layout.x0[i]) * 20);
      state.from = layout.x0[i] - wanted / 2;
      state.to = state.from + wanted;
      clampView();
    }
    const span = state.to - state.from, x0 = layout.x0[i], x1 = Math.min(layout.x1[i], layout.x0[i] + span * 0.6);
    if (x0 < state.from || x1 > state.to) {
      state.from = (x0 + x1) / 2 - span / 2;
      state.to = state.from + span;
    }
    const lane = layout.lanes[layout.laneOf[i]], room = canvas.clientHeight - layout.top;
    if (lane.y < state.top) state.top = lane.y - ROW_PAD_PX;
    if (lane.y + layout.laneHeight > state.top + room) state.top = lane.y + layout.laneHeight - room + ROW_PAD_PX;
    clampView();
    ask();
  }

  // Drawing.

  function ask() {
    if (drawAsked) return;
    drawAsked = true;
    requestAnimationFrame(() => { drawAsked = false; draw(); });
  }

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    theme = Object.fromEntries(["surface", "row", "line", "text", "muted", "accent", "danger", "hit", "order"].map((name) => [name, of(name)]));
    theme.dangerSoft = of("danger-soft");
    theme.tint = Number(of("tint"));
    theme.colours = of("colours").split(" ");
    theme.ui = getComputedStyle(document.body).fontFamily;
    theme.mono = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
    pen.font = `12px ${theme.mono}`;
    theme.charPx = pen.measureText("0".repeat(100)).width / 100;
  }

  function colourOfBlock(block) {
    const rank = blockRank.has(block) ? blockRank.get(block) : block;
    return theme.colours[rank % theme.colours.length];
  }

  function colourOf(i) {
    if (state.colour === "op") return theme.colours[requests.op[i] % theme.colours.length];
    return isRanged(i) ? colourOfBlock(firstBlock(i)) : theme.muted;
  }

  function sized(target, context, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = target.clientWidth;
    if (target.width !== Math.round(width * ratio) || target.height !== Math.round(height * ratio)) {
      target.width = Math.round(width * ratio);
      target.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
  }

  function draw() {
    sized(canvas, pen, canvas.clientHeight);
    visible = [];
    for (const lane of layout.lanes) lane.drawn = [];
    drawRows();
    clipped(layout.left, layout.top, layout.width - layout.left, canvas.clientHeight - layout.top, () => {
      drawGrid();
      drawOverlap();
      for (const lane of lanesInView()) drawLane(lane);
      drawEdges();
      drawOrder();
      drawSelection();
    });
    drawAxis();
    drawSpans();
    drawScrollbar();
    drawOverview();
  }

  /* How much there is above and below, where not all rows have room. */
  function drawScrollbar() {
    const room = canvas.clientHeight - layout.top;
    if (layout.height <= room + 1) return;
    pen.fillStyle = theme.muted;
    pen.globalAlpha = 0.5;
    pen.beginPath();
    pen.roundRect(layout.width - 7, layout.top + (state.top / layout.height) * room, 5, (room / layout.height) * room, 2.5);
    pen.fill();
    pen.globalAlpha = 1;
  }

  function clipped(x, y, width, height, inside) {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, width, height);
    pen.clip();
    inside();
    pen.restore();
  }

  function lanesInView() {
    const bottom = state.top + canvas.clientHeight - layout.top;
    return layout.lanes.filter((lane) => lane.y + layout.laneHeight > state.top && lane.y < bottom);
  }

  function drawRows() {
    clipped(0, layout.top, layout.width, canvas.clientHeight - layout.top, () => {
      layout.rows.forEach((row, at) => {
        const y = layout.top + row.y - state.top;
        if (y > canvas.clientHeight || y + row.height < layout.top) return;
        if (at % 2) { pen.fillStyle = theme.row; pen.fillRect(0, y, layout.width, row.height); }
        pen.fillStyle = theme.line;
        pen.fillRect(0, y + row.height - 1, layout.width, 1);
        pen.fillStyle = theme.text;
        pen.font = `600 13px ${theme.ui}`;
        pen.textBaseline = "middle";
        const middle = Math.min(Math.max(y + row.height / 2, layout.top + 12), y + row.height - 10);
        pen.fillText(fitted(tables.client[row.client], layout.left - 22), 14, middle);
      });
      pen.fillStyle = theme.line;
      pen.fillRect(layout.left - 1, layout.top, 1, canvas.clientHeight);
    });
  }

  /* Text cut to a width, in the pen's font. */
  function fitted(text, width) {
    if (pen.measureText(text).width <= width) return text;
    let end = text.length;
    while (end > 1 && pen.measureText(`${text.slice(0, end)}…`).width > width) end--;
    return `${text.slice(0, end)}…`;
  }

  function ticks() {
    if (state.mode === "time") return evenTicks(Math.max(2, Math.floor((layout.width - layout.left) / 100)));
    const { distinct, places } = layout.place, found = [];
    let at = lowerBound(places, state.from);
    const last = Math.max(0, lowerBound(places, state.to) - 1);
    const fine = at < last ? (distinct[last] - distinct[at]) / 1000 : 0;
    while (at < places.length && places[at] <= state.to) {
      found.push([places[at], timeText(distinct[at], fine)]);
      at = Math.max(at + 1, lowerBound(places, places[at] + 110 / pixelsPerPlace()));
    }
    return found;
  }

  function evenTicks(count) {
    const rough = (state.to - state.from) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(1, power * [1, 2, 5, 10].find((each) => each * power >= rough));
    const found = [];
    for (let at = Math.ceil(state.from / step) * step; at <= state.to; at += step) found.push([at, timeText(at, step)]);
    return found;
  }

  function drawAxis() {
    pen.fillStyle = theme.surface;
    pen.fillRect(0, 0, layout.width, AXIS_PX);
    pen.fillStyle = theme.line;
    pen.fillRect(0, AXIS_PX - 1, layout.width, 1);
    pen.font = `11px ${theme.ui}`;
    pen.textBaseline = "middle";
    pen.fillStyle = theme.muted;
    pen.fillText(data.unit === "step" ? "step" : "time", 14, AXIS_PX / 2);
    let free = layout.left;
    for (const [place, text] of ticks()) {
      const x = toPixel(place), half = pen.measureText(text).width / 2;
      if (x - half < free || x + half > layout.width - 4) continue;
      pen.fillText(text, x - half, AXIS_PX / 2);
      free = x + half + 12;
    }
  }

  function drawGrid() {
    pen.fillStyle = theme.line;
    pen.globalAlpha = 0.6;
    for (const [place] of ticks()) pen.fillRect(Math.round(toPixel(place)), layout.top, 1, layout.height);
    pen.globalAlpha = 1;
  }

  /* Rows above the clients': for each value of the conflict, from the first answer to the last question. */
  function drawSpans() {
    layout.spans.forEach(([name, first, last], at) => {
      const y = AXIS_PX + 4 + at * SPAN_PX;
      pen.fillStyle = theme.danger;
      pen.font = `600 13px ${theme.ui}`;
      pen.textBaseline = "middle";
      pen.fillText(fitted(name, layout.left - 22), 14, y + SPAN_PX / 2);
      clipped(layout.left, y, layout.width - layout.left, SPAN_PX, () => drawSpan(name, first, last, y));
    });
    if (!layout.spans.length) return;
    pen.fillStyle = theme.line;
    pen.fillRect(0, layout.top - 1, layout.width, 1);
  }

  function drawSpan(name, first, last, y) {
    const holds = first < last, left = toPixel(layout.place(Math.min(first, last))), right = toPixel(layout.place(Math.max(first, last)));
    const texts = holds ? [`must be ${name} from here to there`, `must be ${name}`, name] : [`${name} is there at some instant`, name];
    pen.fillStyle = theme.dangerSoft;
    pen.strokeStyle = theme.danger;
    pen.lineWidth = 1.5;
    pen.setLineDash(holds ? [] : [4, 3]);
    pen.beginPath();
    pen.roundRect(left, y + 3, Math.max(4, right - left), SPAN_PX - 7, 4);
    if (holds) pen.fill();
    pen.stroke();
    pen.setLineDash([]);
    pen.fillStyle = theme.danger;
    pen.font = `11px ${theme.ui}`;
    const start = Math.max(left, layout.left) + 8, width = Math.min(right, layout.width) - start - 6;
    const text = texts.find((each) => pen.measureText(each).width <= width);
    if (text) pen.fillText(text, start, y + SPAN_PX / 2 - 0.5);
    else if (right > layout.left) pen.fillText(texts[0], Math.max(right, layout.left) + 7, y + SPAN_PX / 2 - 0.5);
  }

  /* Where two values would have to be there at one time: this is what cannot be. */
  function drawOverlap() {
    const holding = layout.spans.filter(([, first, last]) => first < last);
    if (layout.spans.length < 2 || !holding.length) return;
    const edges = layout.spans.map(([, first, last]) => [Math.min(first, last), Math.max(first, last)]);
    const left = toPixel(layout.place(Math.max(...edges.map(([first]) => first))));
    const right = toPixel(layout.place(Math.min(...edges.map(([, last]) => last))));
    if (right <= left) return;
    pen.fillStyle = theme.danger;
    pen.globalAlpha = 0.1;
    pen.fillRect(left, layout.top, right - left, canvas.clientHeight);
    pen.globalAlpha = 1;
  }

  /* A lane's bars; many in one pixel are drawn as one. */
  function drawLane(lane) {
    const members = lane.members;
    let at = Math.max(0, lowerBound(members, state.from, (i) => layout.x1[i]));
    const y = layout.top + lane.y - state.top;
    while (at < members.length && layout.x0[members[at]] <= state.to) {
      const i = members[at];
      const rect = rectOf(i);
      if (rect.width <= BAR_MIN_PX) {
        const next = Math.max(at + 1, lowerBound(members, toPlace(rect.x + BAR_MIN_PX - 1), (each) => layout.x1[each]));
        drawSliver(lane, at, next, rect, y);
        at = next;
      } else {
        drawBar(i, rect);
        lane.drawn.push({ left: rect.x, right: rect.x + rect.width, request: i });
        at++;
      }
    }
  }

  function drawSliver(lane, from, to, rect, y) {
    const members = lane.members;
    let mark = members[from];
    for (let at = from; at < to && at < from + 500; at++) {
      if (conflict.has(members[at]) || members[at] === state.selected) { mark = members[at]; break; }
    }
    visible.push(mark);
    lane.drawn.push({ left: rect.x, right: rect.x + BAR_MIN_PX - 1, request: mark });
    pen.globalAlpha = isDimmed(mark) ? 0.25 : 1;
    pen.fillStyle = conflict.has(mark) ? theme.danger : colourOf(mark);
    pen.fillRect(rect.x, y, BAR_MIN_PX - 1, layout.laneHeight - LANE_GAP_PX);
    pen.globalAlpha = 1;
  }

  function isDimmed(i) { return state.matched !== null && !state.matched[i]; }

  function drawBar(i, rect) {
    visible.push(i);
    const { x, y, width, height } = cut(rect);
    const colour = colourOf(i);
    pen.globalAlpha = isDimmed(i) ? 0.25 : 1;
    const alpha = pen.globalAlpha;
    path(i, x, y, width, height);
    pen.fillStyle = theme.surface;
    pen.fill();
    if (CHANGES.has(op(i)) || conflict.has(i)) {
      pen.globalAlpha = alpha * (conflict.has(i) ? 1 : theme.tint);
      pen.fillStyle = conflict.has(i) ? theme.dangerSoft : isPending(i) ? fading(x, width, colour) : colour;
      pen.fill();
      pen.globalAlpha = alpha;
    }
    drawStrip(i, x, y, width, height, colour);
    pen.strokeStyle = conflict.has(i) ? theme.danger : colour;
    pen.lineWidth = conflict.has(i) ? 2.5 : 1.25;
    pen.setLineDash(isFailed(i) ? [4, 3] : []);
    path(i, x, y, width, height);
    pen.stroke();
    pen.setLineDash([]);
    drawSteps(i, x, y, width, height);
    drawLabel(i, x, y, width, height);
    pen.globalAlpha = 1;
  }

  /* A rectangle cut to the window: a bar of hours drawn at nanoseconds is too wide for a canvas. */
  function cut(rect) {
    const left = Math.max(rect.x, layout.left - 20), right = Math.min(rect.x + rect.width, layout.width + 20);
    return { x: left, y: rect.y, width: Math.max(BAR_MIN_PX, right - left), height: rect.height };
  }

  /* A box; one that was never answered is open to the right. */
  function path(i, x, y, width, height) {
    const round = Math.min(4, width / 2);
    pen.beginPath();
    if (!isPending(i)) { pen.roundRect(x, y, width, height, round); return; }
    pen.moveTo(x + width, y);
    pen.lineTo(x + round, y);
    pen.quadraticCurveTo(x, y, x, y + round);
    pen.lineTo(x, y + height - round);
    pen.quadraticCurveTo(x, y + height, x + round, y + height);
    pen.lineTo(x + width, y + height);
  }

  function fading(x, width, colour) {
    const gradient = pen.createLinearGradient(x, 0, x + width, 0);
    gradient.addColorStop(0, colour);
    gradient.addColorStop(1, theme.surface);
    return gradient;
  }

  /* Below, the blocks that a request is about, from the first to the last. */
  function drawStrip(i, x, y, width, height, colour) {
    if (!isRanged(i) || width < 10) return;
    const first = firstBlock(i), count = Math.min(8, lastBlock(i) - first + 1);
    const parts = state.colour === "block" ? count : 1, left = x + 2, step = (width - 4) / parts;
    for (let part = 0; part < parts; part++) {
      pen.fillStyle = state.colour === "block" ? colourOfBlock(first + part) : colour;
      pen.fillRect(left + part * step, y + height - 5, step - (part < parts - 1 ? 1.5 : 0), 3.5);
    }
  }

  function drawLabel(i, x, y, width, height) {
    const left = Math.max(x, layout.left) + 7, room = Math.min(x + width, layout.width) - left - 5 - (isCrossedAbove(i) ? 24 : 0);
    if (room < TEXT_MIN_PX - 18) return;
    const chars = Math.floor(room / theme.charPx);
    const texts = labels(i);
    const cutText = chars >= 4 && texts[3].length > chars ? `${texts[3].slice(0, chars - 1)}…` : "";
    const text = texts.slice(0, 4).concat(texts[4]).find((each) => each.length <= chars) || cutText || texts.slice(4).find((each) => each.length <= chars);
    if (!text) return;
    pen.font = `12px ${theme.mono}`;
    pen.textBaseline = "middle";
    pen.fillStyle = theme.text;
    pen.fillText(text, left, layout.isRoomy ? y + 13 : y + (height - 4) / 2 + 0.5);
  }

  // Steps of a request, as ticks with their number.

  function stepRect(at) {
    const rect = rectOf(data.steps.request[at]), x = toPixel(layout.place(data.steps.at[at]));
    return { x: x - 8, y: rect.y + rect.height - 27, width: 16, height: 19, middle: x };
  }

  function drawSteps(i) {
    if (!stepsOf.has(i) || layout.laneHeight < 36) return;
    const wrong = new Set(data.steps.wrong);
    const numbered = pixelsPerPlace() > 17;
    for (const at of stepsOf.get(i)) {
      const { y, middle, height } = stepRect(at);
      if (middle < layout.left - 20 || middle > layout.width + 20) continue;
      const chosen = at === state.step;
      pen.fillStyle = wrong.has(at) ? theme.danger : chosen ? theme.accent : theme.muted;
      if (!numbered) { pen.fillRect(middle - 1, y + 3, 2, height - 5); continue; }
      if (chosen || wrong.has(at)) {
        pen.beginPath();
        pen.roundRect(middle - 9, y + 1, 18, 16, 4);
        pen.fill();
        pen.fillStyle = theme.surface;
      } else {
        pen.fillRect(middle - 0.5, y + 16, 1, 4);
      }
      pen.font = `${chosen ? 700 : 500} 11px ${theme.ui}`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillText(`${at + 1}`, middle, y + 9.5);
      pen.textAlign = "left";
    }
  }

  // Orders and circles.

  /* What has to be before what, all around: arrows from edge to edge, side by side. */
  function drawEdges() {
    const edges = data.edges.filter(([before, after]) => layout.isShown[before] && layout.isShown[after]);
    if (edges.length > EDGES_MAX) return;
    edges.forEach(([before, after], at) => {
      const from = cut(rectOf(before)), to = cut(rectOf(after));
      const share = (at + 1) / (edges.length + 1);
      const left = Math.max(from.x, to.x), right = Math.min(from.x + from.width, to.x + to.width);
      if (Math.abs(from.y - to.y) < 1) drawArc(from, to);
      else if (right - left > 24) drawArrow(left + share * (right - left), left + share * (right - left), from, to);
      else drawArrow(from.x + from.width - 8, to.x + 8, from, to);
    });
  }

  /* Between two rows. */
  function drawArrow(x, x2, from, to) {
    const isDown = to.y > from.y, y = isDown ? from.y + from.height : from.y, y2 = isDown ? to.y : to.y + to.height;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x2, y2);
    drawHead(x2, y2 + (isDown ? -2 : 2), Math.atan2(y2 - y, x2 - x));
  }

  /* In one row, from an end to a beginning. */
  function drawArc(from, to) {
    const x = from.x + from.width - 6, x2 = to.x + 6, y = from.y + 2;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.quadraticCurveTo((x + x2) / 2, y - 32, x2, y);
    drawHead(x2, y, Math.atan2(32, (x2 - x) / 2));
  }

  /* The path's line, and a head at its end. */
  function drawHead(x, y, angle) {
    pen.strokeStyle = pen.fillStyle = theme.danger;
    pen.lineWidth = 2;
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x, y);
    for (const turn of [2.7, -2.7]) pen.lineTo(x + 10 * Math.cos(angle + turn), y + 10 * Math.sin(angle + turn));
    pen.fill();
  }

  /* A dot in each bar where it takes effect, and a line through them in order. */
  function drawOrder() {
    const chain = layout.chain;
    if (!chain || !chain.order.length && !chain.refused.length) return;
    const first = Math.max(0, lowerBound(layout.pointX, state.from) - 1);
    const end = Math.min(layout.pointX.length, lowerBound(layout.pointX, state.to) + 1);
    if (end - first <= POINTS_MAX) drawPoints(chain, first, end);
    for (const [i] of chain.refused) drawRefused(i);
  }

  /* Below what the bar says, where there is room for both. */
  function pointY(rect) { return layout.isRoomy ? rect.y + (stepsOf.size ? 14 : 29) : rect.y + rect.height - 3; }

  function drawPoints(chain, first, end) {
    const spots = [];
    for (let at = first; at < end; at++) {
      const rect = rectOf(chain.order[at]);
      const x = Math.max(rect.x + 1, Math.min(toPixel(layout.pointX[at]), rect.x + rect.width - 1));
      spots.push([x, pointY(rect), chain.numbers[at]]);
    }
    pen.strokeStyle = theme.order;
    pen.lineWidth = 1.25;
    pen.globalAlpha = spots.length <= LINES_MAX ? 0.4 : 0.15;
    pen.beginPath();
    spots.forEach(([x, y], at) => (at ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
    pen.globalAlpha = 1;
    const numbered = layout.isRoomy && spots.length * 40 < layout.width - layout.left;
    for (const [x, y, number] of spots) drawPoint(x, y, numbered ? `${number}` : "");
  }

  function drawPoint(x, y, text) {
    pen.fillStyle = theme.order;
    pen.strokeStyle = theme.surface;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.arc(x, y, text ? (text.length > 2 ? 12 : 8.5) : 3.5, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
    if (!text) return;
    pen.fillStyle = theme.surface;
    pen.font = `700 11px ${theme.ui}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(text, x, y + 0.5);
    pen.textAlign = "left";
  }

  function drawRefused(i) {
    const rect = cut(rectOf(i)), x = rect.x + (layout.isRoomy ? Math.min(14, rect.width / 2) : -2), y = layout.isRoomy ? rect.y + (stepsOf.size ? 36 : 29) : rect.y + rect.height / 2 - 2;
    if (isCrossedAbove(i)) return drawCross(rect.x + rect.width - 14, rect.y + 14);
    return drawCross(x, y);
  }

  /* Whether the cross of a refused request stands beside what the bar says, as its steps are below. */
  function isCrossedAbove(i) { return stepsOf.has(i) && layout.chain !== null && layout.chain.refused.some(([each]) => each === i); }

  function drawCross(x, y) {
    pen.fillStyle = theme.danger;
    pen.strokeStyle = theme.surface;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.arc(x, y, 9, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
    pen.strokeStyle = theme.surface;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.moveTo(x - 3.5, y - 3.5);
    pen.lineTo(x + 3.5, y + 3.5);
    pen.moveTo(x + 3.5, y - 3.5);
    pen.lineTo(x - 3.5, y + 3.5);
    pen.stroke();
  }

  function drawSelection() {
    if (state.match >= 0) outline(state.matches[state.match], theme.hit, 2);
    if (state.hovered >= 0) outline(state.hovered, theme.accent, 1.5);
    if (state.selected >= 0) outline(state.selected, theme.accent, 3);
  }

  function outline(i, colour, width) {
    if (!layout.isShown[i]) return;
    const rect = cut(rectOf(i));
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.roundRect(rect.x - 2.5, rect.y - 1.5, rect.width + 5, rect.height + 3, 5);
    pen.stroke();
  }

  // The strip above: all there is, how busy it was, what the window shows.

  function overviewPixel(place) {
    const [first, last] = extent();
    return 10 + ((place - first) / (last - first)) * (overview.clientWidth - 20);
  }

  function busy() {
    const width = Math.max(1, overview.clientWidth - 20), key = `${width}`;
    if (layout.busyKey === key) return layout.busy;
    const change = new Float64Array(width + 2);
    for (const i of layout.shown) {
      change[Math.max(0, Math.floor(overviewPixel(layout.x0[i]) - 10))]++;
      change[Math.min(width, Math.floor(overviewPixel(layout.x1[i]) - 10) + 1)]--;
    }
    for (let at = 1; at < change.length; at++) change[at] += change[at - 1];
    layout.busyKey = key;
    layout.busy = change;
    return change;
  }

  function drawOverview() {
    const width = overview.clientWidth, height = OVERVIEW_PX;
    sized(overview, overviewPen, height);
    const counts = busy(), most = counts.reduce((a, b) => Math.max(a, b), 1);
    overviewPen.fillStyle = theme.muted;
    overviewPen.globalAlpha = 0.45;
    for (let at = 0; at < width - 20; at++) {
      const tall = Math.round((counts[at] / most) * (height - 14));
      overviewPen.fillRect(10 + at, height - 4 - tall, 1, tall);
    }
    overviewPen.globalAlpha = 1;
    overviewPen.fillStyle = theme.danger;
    for (const i of data.conflict) {
      if (!layout.isShown[i]) continue;
      const left = overviewPixel(layout.x0[i]);
      overviewPen.fillRect(left, 4, Math.max(2, overviewPixel(layout.x1[i]) - left), 3);
    }
    const from = overviewPixel(state.from), to = overviewPixel(state.to);
    overviewPen.fillStyle = theme.accent;
    overviewPen.globalAlpha = 0.14;
    overviewPen.fillRect(from, 1, to - from, height - 3);
    overviewPen.globalAlpha = 1;
    overviewPen.strokeStyle = theme.accent;
    overviewPen.lineWidth = 1.5;
    overviewPen.strokeRect(from, 1.5, Math.max(3, to - from), height - 4);
  }

  // What is where.

  /* What was drawn there: of many requests in one pixel, the one that stands for them. */
  function requestAt(x, y) {
    if (x < layout.left || y < layout.top) return -1;
    const below = y - layout.top + state.top;
    const lane = layout.lanes.find((each) => below >= each.y - 1 && below < each.y + layout.laneHeight - LANE_GAP_PX + 1);
    if (!lane) return -1;
    const drawn = lane.drawn || [];
    let best = -1, distance = Infinity;
    for (let at = lowerBound(drawn, x - NEAR_PX, (each) => each.right); at < drawn.length && drawn[at].left <= x + NEAR_PX; at++) {
      const away = Math.max(drawn[at].left - x, x - drawn[at].right, 0);
      if (away < distance) { best = drawn[at].request; distance = away; }
    }
    return best;
  }

  function stepAt(x, y, i) {
    if (!stepsOf.has(i)) return -1;
    const found = stepsOf.get(i).find((at) => {
      const rect = stepRect(at);
      return Math.abs(x - rect.middle) <= 8 && y >= rect.y && y <= rect.y + rect.height;
    });
    return found === undefined ? -1 : found;
  }

  // Selection, and what is told of it.

  function select(i, step = -1, withReveal = true) {
    state.selected = i;
    state.step = step;
    if (i >= 0 && !layout.isShown[i]) showHidden(i);
    if (i >= 0 && withReveal) reveal(i);
    tell(i);
    markRows();
    ask();
  }

  /* A request that filters hide is shown nevertheless: they are taken off. */
  function showHidden(i) {
    state.client = -1;
    state.block = -1;
    if (state.cropped && !data.around.includes(i)) state.cropped = false;
    syncControls();
    relayout();
    show([i]);
  }

  function made(tag, text = "", className = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  function facts(i) {
    const found = [["request", op(i) + (flagsText(i) ? ` (${flagsText(i)})` : "")]];
    if (isRanged(i)) {
      const first = firstBlock(i), last = lastBlock(i);
      found.push(["offset", bytesText(requests.offset[i])], ["length", bytesText(requests.length[i])]);
      found.push([first === last ? "block" : "blocks", first === last ? `${first}` : `${first} to ${last}`]);
    }
    for (const each of valueFacts(i)) found.push(each);
    found.push(["outcome", outcomeText(i)], ["client", client(i)], ["id", `${requests.id[i]}`]);
    found.push([data.unit === "step" ? "first step" : "invoked", timeText(requests.call[i])]);
    if (!isPending(i)) {
      found.push([data.unit === "step" ? "last step" : "answered", timeText(requests.ret[i])]);
      if (data.unit !== "step") found.push(["took", timeText(requests.ret[i] - requests.call[i])]);
    }
    const at = layout.chain ? layout.chain.order.indexOf(i) : -1;
    if (at >= 0) found.push(["takes effect", `at ${timeText(layout.chain.points[at])}, number ${layout.chain.numbers[at].toLocaleString("en")} in the order`]);
    return found;
  }

  function flagsText(i) { return tables.flags[requests.flags[i]].join(", "); }
  function bytesText(bytes) { return bytes < 1024 || bytes % 1024 ? bytes.toLocaleString("en") : `${bytes.toLocaleString("en")} (${sizeText(bytes)})`; }

  function valueFacts(i) {
    const found = runs(i);
    if (!found.length) return [];
    if (found.length === 1) return [[op(i) === "read" ? "returned" : "value", found[0][0]]];
    let at = requests.offset[i];
    const lines = found.slice(0, 64).map(([name, length]) => {
      const line = `${name} in ${sizeText(at)}+${sizeText(length)}`;
      at += length;
      return line;
    });
    if (found.length > 64) lines.push(`and ${found.length - 64} more`);
    return lines.map((line, number) => [number ? "" : "returned", line]);
  }

  function tell(i) {
    const box = $("selected");
    box.replaceChildren();
    if (i < 0) {
      const hint = made("p", "Click a request, or go from one to the next with ", "hint");
      hint.append(made("kbd", "n"), " and ", made("kbd", "p"), ".");
      box.append(hint);
      return;
    }
    box.append(made("p", nameOf(i), "name"));
    if (conflict.has(i)) box.append(made("p", "In the conflict: no order explains it and the others.", "in-conflict"));
    for (const why of reasons(i)) box.append(made("p", why, "in-conflict"));
    const list = made("dl", "", "details");
    for (const [name, value] of facts(i)) list.append(made("dt", name), made("dd", value));
    box.append(list);
    if (state.step >= 0) box.append(made("p", `Step ${state.step + 1}: ${data.steps.text[state.step]}`));
    const between = made("div", "", "between");
    between.append(button("‹ previous", () => next(-1)), button("next ›", () => next(1)));
    box.append(between);
  }

  function reasons(i) {
    const refused = layout.chain ? layout.chain.refused.filter(([each]) => each === i) : [];
    return [...refused.map(([, why]) => `After the order shown: ${why}.`),
      ...data.edges.filter(([before]) => before === i).map(([, after, why]) => `Before ${nameOf(after)}: ${why}.`)];
  }

  function button(text, action) {
    const element = made("button", text);
    element.type = "button";
    element.addEventListener("click", action);
    return element;
  }

  function markRows() {
    for (const row of document.querySelectorAll("tr[data-request], tr[data-step]")) {
      const current = row.dataset.step === undefined ? Number(row.dataset.request) === state.selected : Number(row.dataset.step) === state.step;
      row.classList.toggle("current", current);
      if (current) row.setAttribute("aria-current", "true"); else row.removeAttribute("aria-current");
      if (current && row.dataset.step !== undefined) row.scrollIntoView({ block: "nearest" });
    }
  }

  /* The request before or behind in order of invocation; with a search, the hit. */
  function next(by) {
    const shown = layout.shown;
    if (!shown.length) return;
    const at = state.selected >= 0 && layout.isShown[state.selected] ? shown.indexOf(state.selected) : by > 0 ? firstInView() - 1 : firstInView() + 1;
    select(shown[Math.max(0, Math.min(shown.length - 1, at + by))]);
  }

  function firstInView() { return Math.min(layout.shown.length - 1, lowerBound(layout.shown, state.from, (i) => layout.x0[i])); }

  // Search.

  const KEYS = {
    client: (text) => { const at = tables.client.indexOf(text); return (i) => requests.client[i] === at; },
    id: (text) => (i) => String(requests.id[i]) === text,
    value: (text) => named((name) => name === text),
    op: (text) => { const at = tables.op.indexOf(text); return (i) => requests.op[i] === at; },
    outcome: (text) => { const at = tables.outcome.indexOf(text); return (i) => requests.outcome[i] === at; },
    offset: (text) => { const at = bytes(text); return (i) => isRanged(i) && requests.offset[i] <= at && at < requests.offset[i] + requests.length[i]; },
    block: (text) => { const at = Number(text); return (i) => isRanged(i) && firstBlock(i) <= at && at <= lastBlock(i); },
  };

  function bytes(text) {
    const match = /^(\d+)([KMGTP]?)$/i.exec(text);
    return match ? Number(match[1]) * 1024 ** " KMGTP".indexOf(match[2].toUpperCase() || " ") : NaN;
  }

  /* As the verdict's sentence calls it: r8, z9, t10. */
  function calledAs(i) { return op(i) === "write" ? valueText(i) : `${op(i)[0]}${requests.id[i]}`; }

  /* Requests whose value has such a name. */
  function named(isOne) {
    const names = tables.name.map(isOne);
    const values = tables.value.map((flat) => (flat.length === 1 ? names[flat[0]] : flat.some((each, at) => at % 2 === 0 && names[each])));
    return (i) => requests.value[i] >= 0 && values[requests.value[i]];
  }

  /* A word without a key is whatever it can be: first all that is just that, else a part of a value or a client. */
  function anything(word) {
    const exact = ["client", "id", "value", "op", "outcome"].map((key) => KEYS[key](word));
    const whole = `${word}`, at = bytes(word);
    const isExact = (i) => exact.some((holds) => holds(i)) || nameOf(i) === whole || calledAs(i) === whole || (isRanged(i) && requests.offset[i] === at);
    for (let i = 0; i < requests.count; i++) if (isExact(i)) return isExact;
    const inValue = named((name) => name.includes(word));
    const inClient = tables.client.map((name) => name.includes(word));
    return (i) => inValue(i) || inClient[requests.client[i]];
  }

  function wanted(word) {
    const colon = word.indexOf(":"), key = word.slice(0, Math.max(0, colon));
    return Object.hasOwn(KEYS, key) ? KEYS[key](word.slice(colon + 1)) : anything(word);
  }

  function search(text) {
    const words = text.trim().split(/\s+/).filter(Boolean).map((word) => word.replace(/^#/, ""));
    state.matches = [];
    state.match = -1;
    state.matched = null;
    if (words.length) {
      const holds = words.map(wanted);
      state.matched = new Uint8Array(requests.count);
      for (let i = 0; i < requests.count; i++) {
        if (!holds.every((each) => each(i))) continue;
        state.matched[i] = 1;
        state.matches.push(i);
      }
    }
    tellFound();
    ask();
  }

  function tellFound() {
    const count = state.matches.length.toLocaleString("en");
    $("found").textContent = state.matched === null ? "" : !state.matches.length ? "not found" :
      state.match < 0 ? `${count} found` : `${(state.match + 1).toLocaleString("en")} of ${count}`;
  }

  function nextMatch(by) {
    if (!state.matches.length) return;
    const count = state.matches.length;
    state.match = state.match < 0 ? (by > 0 ? firstMatch() : count - 1) : (state.match + by + count) % count;
    tellFound();
    select(state.matches[state.match]);
  }

  /* The first hit that is shown now, if one is: the filters stay as long as they can. */
  function firstMatch() { return Math.max(0, state.matches.findIndex((i) => layout.isShown[i])); }

  // Controls.

  function option(value, text) {
    const element = made("option", text);
    element.value = String(value);
    return element;
  }

  function fillControls() {
    $("client").append(option(-1, "all"), ...tables.client.map((name, at) => option(at, name)));
    $("block").append(option(-1, "all"), ...blocks.map(([block, count]) => option(block, `${block} (${count.toLocaleString("en")})`)));
    $("order").append(option(-1, "none"), ...chains.slice(0, BLOCKS_MAX).map((chain, at) => option(at, chain.name)));
    $("order-group").hidden = !chains.length;
    $("crop-group").hidden = !data.around.length || data.around.length === requests.count;
    trimLegend();
    $("axis-group").hidden = data.unit === "step";
  }

  /* The legend says what there is, and no more. */
  function trimLegend() {
    const there = {
      pending: requests.took.some((took) => took < 0),
      failed: tables.outcome.some((each) => each !== "ok" && each !== "pending"),
      conflict: conflict.size > 0,
      order: chains.length > 0,
      refused: chains.some((chain) => chain.refused.length),
      edge: data.edges.length > 0,
    };
    for (const [name, isThere] of Object.entries(there)) $(`legend-${name}`).hidden = !isThere;
  }

  function pressed(id, isPressed) { $(id).setAttribute("aria-pressed", String(isPressed)); }

  function syncControls() {
    $("violation").hidden = !data.conflict.length || state.cropped;
    pressed("crop", state.cropped);
    pressed("all", !state.cropped);
    pressed("by-order", state.mode === "order");
    pressed("by-time", state.mode === "time");
    $("client").value = String(state.client);
    $("block").value = String(state.block);
    $("colour").value = state.colour;
    $("order").value = String(state.chain);
    fillLegend();
  }

  function fillLegend() {
    const box = $("legend-colours");
    box.replaceChildren();
    if (state.colour === "op") {
      const used = new Set(requests.op);
      tables.op.forEach((name, at) => { if (used.has(at)) box.append(swatch(theme.colours[at % theme.colours.length], name, false, () => {})); });
      return;
    }
    const shown = blocks.slice(0, theme.colours.length);
    for (const [block] of shown) box.append(swatch(colourOfBlock(block), `block ${block}`, state.block === block, () => filterBlock(block)));
    if (blocks.length > shown.length) box.append(made("span", "the colours repeat", "more"));
  }

  function swatch(colour, text, isPressed, action) {
    const element = button("", action), square = made("i");
    square.style.background = colour;
    element.append(square, text);
    element.setAttribute("aria-pressed", String(isPressed));
    return element;
  }

  function filterBlock(block) {
    state.block = state.block === block ? -1 : block;
    chooseChainOf(state.block);
    changed();
  }

  /* Where each part of the device has its own order, the one of the block that is looked at. */
  function chooseChainOf(block) {
    if (block < 0 || !chains.length || !chains[0].range) return;
    const start = block * data.device.block_size, end = start + data.device.block_size;
    const at = chains.findIndex((chain) => chain.range && chain.range[0] < end && start < chain.range[0] + chain.range[1]);
    if (at >= 0) state.chain = at;
  }

  /* The filters or the axis are others: the same requests stay in view, as far as they are still there. */
  function changed() {
    const kept = visible.slice(0, 2000);
    syncControls();
    relayout();
    if (kept.some((i) => layout.isShown[i])) show(kept); else fit();
    tell(state.selected);
  }

  function setCropped(isCropped) {
    if (!data.around.length) return;
    if (state.cropped && isCropped) { goToConflict(); return; }
    if (state.cropped === isCropped) return;
    state.cropped = isCropped;
    changed();
    if (!isCropped) show(data.conflict);
  }

  function setMode(mode) {
    if (state.mode === mode) return;
    state.mode = mode;
    changed();
  }

  function goToConflict() {
    if (!data.conflict.length) return;
    state.client = state.block = -1;
    syncControls();
    relayout();
    show(state.cropped ? layout.shown : data.conflict);
    const row = layout.laneOf[data.conflict[0]];
    if (row >= 0) reveal(data.conflict[0]);
  }

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function toggleTheme() {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themeChanged();
  }

  function themeChanged() {
    readTheme();
    fillLegend();
    ask();
  }

  function toggleHelp() {
    const keys = $("keys");
    keys.hidden = !keys.hidden;
    $("help").setAttribute("aria-expanded", String(!keys.hidden));
    if (!keys.hidden) keys.scrollIntoView({ block: "nearest" });
  }

  function escape() {
    if ($("search").value) { $("search").value = ""; search(""); } else select(-1);
    if (document.activeElement instanceof HTMLElement && document.activeElement !== canvas) canvas.focus({ preventScroll: true });
  }

  const PRESSED = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
    "ArrowLeft": () => pan(-(layout.width - layout.left) / 8), "ArrowRight": () => pan((layout.width - layout.left) / 8),
    "ArrowUp": () => pan(0, -layout.laneHeight * 2), "ArrowDown": () => pan(0, layout.laneHeight * 2),
    "n": () => next(1), "p": () => next(-1),
    "Home": () => select(layout.shown.length ? layout.shown[0] : -1),
    "End": () => select(layout.shown.length ? layout.shown[layout.shown.length - 1] : -1),
    "Escape": escape,
    "/": () => { $("search").focus(); $("search").select(); },
    "v": goToConflict, "c": () => setCropped(!state.cropped), "t": () => setMode(state.mode === "order" ? "time" : "order"),
    "0": fit, "d": toggleTheme, "?": toggleHelp,
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inField = event.target instanceof HTMLElement && event.target.matches("input, select, textarea");
    if (inField && event.key !== "Escape") return;
    const action = Object.hasOwn(PRESSED, event.key) ? PRESSED[event.key] : null;
    if (!action) return;
    event.preventDefault();
    action();
  }

  function onSearchKey(event) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    nextMatch(event.shiftKey ? -1 : 1);
  }

  // The pointer.

  let drag = null;

  function onDown(event) {
    if (event.button !== 0) return;
    drag = { x: event.offsetX, y: event.offsetY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  }

  function onMove(event) {
    if (!drag) return hover(event.offsetX, event.offsetY);
    const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 4) return undefined;
    drag = { x: event.offsetX, y: event.offsetY, moved: true };
    tip.hidden = true;
    canvas.style.cursor = "grabbing";
    return pan(-dx, -dy);
  }

  function onUp(event) {
    if (drag && !drag.moved) {
      const i = requestAt(event.offsetX, event.offsetY);
      select(i, i < 0 ? -1 : stepAt(event.offsetX, event.offsetY, i), false);
    }
    drag = null;
    canvas.style.cursor = "";
  }

  function onWheel(event) {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 16 : 1;
    if (event.shiftKey) return pan((event.deltaX || event.deltaY) * unit);
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) return pan(event.deltaX * unit);
    if (event.offsetX < layout.left) return pan(0, event.deltaY * unit);
    return zoom(Math.exp(-event.deltaY * unit * 0.0016), event.offsetX);
  }

  function hover(x, y) {
    const i = requestAt(x, y);
    if (i !== state.hovered) { state.hovered = i; ask(); }
    canvas.style.cursor = i < 0 ? "" : "pointer";
    tip.hidden = i < 0;
    if (i < 0) return;
    const step = stepAt(x, y, i);
    const lines = step >= 0 ? [`step ${step + 1}: ${data.steps.text[step]}`] : [
      `${nameOf(i)}: ${op(i)} ${rangeText(i)}`, valueText(i).slice(0, 200), outcomeText(i),
      data.unit === "step" ? "" : `${timeText(requests.call[i])}${isPending(i) ? "" : ` to ${timeText(requests.ret[i])}`}`];
    tip.textContent = lines.filter(Boolean).join("\n");
    const left = x + 16 + tip.offsetWidth > layout.width ? x - tip.offsetWidth - 12 : x + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.min(OVERVIEW_PX + y + 16, OVERVIEW_PX + canvas.clientHeight - tip.offsetHeight - 4)}px`;
  }

  function onOverview(event) {
    if (event.buttons !== 1) return;
    const [first, last] = extent(), span = state.to - state.from;
    const place = first + ((event.offsetX - 10) / (overview.clientWidth - 20)) * (last - first);
    state.from = place - span / 2;
    state.to = place + span / 2;
    clampView();
    ask();
  }

  function onRow(event) {
    const row = event.target.closest("tr[data-request], tr[data-step]");
    if (!row) return;
    const step = row.dataset.step === undefined ? -1 : Number(row.dataset.step);
    select(step < 0 ? Number(row.dataset.request) : data.steps.request[step], step);
  }

  function listen() {
    const on = (id, event, action) => $(id).addEventListener(event, action);
    document.addEventListener("keydown", onKey);
    on("search", "keydown", onSearchKey);
    on("search", "input", () => search($("search").value));
    on("timeline", "pointerdown", onDown);
    on("timeline", "pointermove", onMove);
    on("timeline", "pointerup", onUp);
    on("timeline", "pointercancel", () => { drag = null; });
    on("timeline", "pointerleave", () => { tip.hidden = true; state.hovered = -1; ask(); });
    canvas.addEventListener("wheel", onWheel, { passive: false });
    on("overview", "pointerdown", onOverview);
    on("overview", "pointermove", onOverview);
    on("why", "click", onRow);
    on("crop", "click", () => setCropped(true));
    on("all", "click", () => setCropped(false));
    on("by-order", "click", () => setMode("order"));
    on("by-time", "click", () => setMode("time"));
    on("client", "change", () => { state.client = Number($("client").value); changed(); });
    on("block", "change", () => { state.block = Number($("block").value); chooseChainOf(state.block); changed(); });
    on("colour", "change", () => { state.colour = $("colour").value; syncControls(); ask(); });
    on("order", "change", () => { state.chain = Number($("order").value); changed(); });
    on("zoom-in", "click", () => zoom(1.5));
    on("zoom-out", "click", () => zoom(1 / 1.5));
    on("fit", "click", fit);
    on("violation", "click", goToConflict);
    on("theme", "click", toggleTheme);
    on("help", "click", toggleHelp);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);
    new ResizeObserver(() => { measure(); clampView(); draw(); }).observe($("left"));
  }

  /* How many places fit so that bars have room for what they say: with many lanes, a bar goes over many places. */
  function readable() { return ((layout.width - layout.left) / UNIT_PX) * Math.max(1, layout.lanes.length / 4); }

  /* What stands in the way of every order, if anything does. */
  function firstSelected() {
    const refused = layout.chain ? layout.chain.refused : [];
    return refused.length ? refused[0][0] : data.conflict.length ? data.conflict[data.conflict.length - 1] : -1;
  }

  /* Where it opens: at the conflict; else at all there is, or where it begins if that is much. */
  function open() {
    document.documentElement.classList.add("scripted");
    readTheme();
    fillControls();
    layout = arranged();
    measure();
    syncControls();
    $("nothing").hidden = layout.shown.length > 0;
    [state.from, state.to] = extent();
    if (!state.cropped && layout.shown.length > OPENED) state.to = state.from + readable();
    clampView();
    select(firstSelected());
    draw();
    listen();
  }

  open();

  /* For tests, and for who wants to look with the browser's console. */
  window.cowproof = {
    getVisible: () => [...visible],
    getShown: () => [...layout.shown],
    getSelected: () => state.selected,
    getStep: () => state.step,
    getMatches: () => [...state.matches],
    getOrder: () => (layout.chain ? [...layout.chain.order] : []),
    getView: () => ({ from: state.from, to: state.to, top: state.top, mode: state.mode, cropped: state.cropped, left: layout.left }),
    getTheme: () => (isDark() ? "dark" : "light"),
    getRect: (i) => rectOf(i),
    getStepRect: (at) => stepRect(at),
    getPoint: (i) => { const at = layout.chain.order.indexOf(i); return toPixel(layout.pointX[at]); },
    getColour: (i) => colourOf(i),
    draw,
  };
})();
