// The layer explorer: a slider over the layers, a persistence diagram and Betti curves that answer to pointer and keys.
// It reads the JSON beside it, sets text by textContent only, and stays hidden where scripts do not run.
for (const root of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const [diagram, curves] = root.querySelectorAll("svg.view");
  const slider = root.querySelector("input[type=range]");
  const title = root.querySelector(".layer-name");
  const status = root.querySelector("[role=status]");
  const tip = root.querySelector(".tip");
  const boxes = [...root.querySelectorAll("input[type=checkbox][data-dimension]")];
  const same = root.querySelector("input[type=checkbox][data-same]");
  const W = 440, H = 360, LEFT = 46, RIGHT = 14, TOP = 14, BOTTOM = 40, NEVER = 16;
  const NS = "http://www.w3.org/2000/svg";
  let points = [], chosen = -1, frame = null;

  const show = (value) => value === 0 ? "0" : Number(value.toPrecision(4)).toString();
  const make = (parent, tag, attributes, text) => {
    const element = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const reach = (layer) => {
    let most = 0;
    for (const bars of layer.bars) {
      for (const values of [bars.deaths, bars.essential, bars.censored]) for (const value of values) most = Math.max(most, value);
    }
    return most || 1;
  };
  const tallest = (layer) => Math.max(1, ...layer.betti.values.flatMap((row, at) => visible(at) ? row : []));
  const visible = (dimension) => boxes.every((box) => Number(box.dataset.dimension) !== dimension || box.checked);
  const widest = Math.max(...data.layers.map(reach));
  const ticks = (most) => {
    const rough = most / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough * 0.999);
    return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, k) => k * step);
  };
  const axes = (svg, x, y, xs, ys, xName, yName) => {
    svg.replaceChildren();
    for (const value of ys) {
      make(svg, "line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) });
      make(svg, "text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, show(value));
    }
    for (const value of xs) make(svg, "text", { class: "tick", x: x(value), y: H - BOTTOM + 17, "text-anchor": "middle" }, show(value));
    make(svg, "line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM });
    make(svg, "line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: H - BOTTOM });
    make(svg, "text", { class: "name", x: W - RIGHT, y: H - 6, "text-anchor": "end" }, xName);
    make(svg, "text", { class: "name", x: -TOP, y: 11, transform: "rotate(-90)", "text-anchor": "end" }, yName);
  };
  // A circle, a square and a triangle tell the dimensions apart without colour.
  const mark = (svg, kind, x, y, size, classes) => {
    if (kind === 0) return make(svg, "circle", { class: classes, cx: x, cy: y, r: size });
    if (kind === 1) return make(svg, "rect", { class: classes, x: x - size, y: y - size, width: 2 * size, height: 2 * size });
    return make(svg, "path", { class: classes, d: `M${x} ${y - 1.3 * size}l${1.2 * size} ${2.2 * size}h${-2.4 * size}z` });
  };
  const words = (point) => {
    const many = point.count === 1 ? "1 bar" : `${point.count} bars`;
    const kind = `H${point.dimension}`;
    if (point.end) return `${kind}: born ${show(point.birth)}, ${point.end}; ${many}`;
    const lifetime = point.birth === 0 ? point.death : Number((point.death - point.birth).toPrecision(3));
    return `${kind}: born ${show(point.birth)}, dies ${show(point.death)}, lifetime ${show(lifetime)}; ${many}`;
  };

  const drawDiagram = (layer, limit) => {
    const inner = TOP + NEVER;
    const x = (value) => LEFT + (W - LEFT - RIGHT) * value / limit;
    const y = (value) => H - BOTTOM - (H - BOTTOM - inner - 8) * value / limit;
    axes(diagram, x, y, ticks(limit), ticks(limit), "birth / scale", "death / scale");
    make(diagram, "line", { class: "axis", x1: x(0), y1: y(0), x2: x(limit), y2: y(limit) });
    make(diagram, "line", { class: "axis dashed", x1: LEFT, x2: W - RIGHT, y1: TOP + 6, y2: TOP + 6 });
    make(diagram, "text", { class: "tick", x: LEFT - 6, y: TOP + 10, "text-anchor": "end" }, "\u221e");
    points = [];
    for (const bars of layer.bars) {
      if (!visible(bars.dimension)) continue;
      const group = make(diagram, "g", {});
      bars.births.forEach((birth, at) => {
        const point = { dimension: bars.dimension, birth, death: bars.deaths[at], count: bars.counts[at] };
        points.push({ ...point, x: x(birth), y: y(point.death), length: point.death - birth });
        mark(group, bars.dimension, x(birth), y(point.death), 2.6, `mark h${bars.dimension}`);
      });
      for (const [end, births] of [["never dies", bars.essential], ["alive where the filtration ended", bars.censored]]) {
        const counted = new Map();
        for (const birth of births) counted.set(birth, (counted.get(birth) ?? 0) + 1);
        for (const [birth, count] of counted) {
          points.push({ dimension: bars.dimension, birth, death: 0, count, end, x: x(birth), y: TOP + 6, length: Infinity });
          mark(group, 2, x(birth), TOP + 6, 4, `mark h${bars.dimension}${end === "never dies" ? "" : " hollow"}`);
        }
      }
    }
    points.sort((a, b) => b.length - a.length);
    make(diagram, "circle", { class: "ring", r: 7, visibility: "hidden" });
    diagram.setAttribute("aria-label", `Persistence diagram of ${layer.name}. Arrow keys step through its bars from the longest.`);
  };
  const drawCurves = (layer, limit, top) => {
    const x = (value) => LEFT + (W - LEFT - RIGHT) * value / limit;
    const y = (value) => H - BOTTOM - (H - BOTTOM - TOP) * value / top;
    axes(curves, x, y, ticks(limit), ticks(top), "distance / scale", "classes alive");
    const { at, values } = layer.betti;
    values.forEach((row, dimension) => {
      if (!visible(dimension) || !at.length) return;
      let path = `M${x(at[0]).toFixed(1)} ${y(row[0]).toFixed(1)}`;
      for (let k = 1; k < at.length; k++) path += `H${Math.min(x(at[k]), W - RIGHT).toFixed(1)}V${y(row[k]).toFixed(1)}`;
      make(curves, "path", { class: `curve h${dimension}`, d: `${path}H${W - RIGHT}` });
    });
    make(curves, "line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
    curves.setAttribute("aria-label", `Betti curves of ${layer.name}. Left and right move along the distance.`);
  };
  const draw = () => {
    const layer = data.layers[slider.value];
    const limit = 1.05 * (same.checked ? widest : reach(layer));
    const top = 1.05 * (same.checked ? Math.max(...data.layers.map(tallest)) : tallest(layer));
    chosen = -1;
    hide();
    drawDiagram(layer, limit);
    drawCurves(layer, limit, top);
    frame = { layer, limit };
    title.textContent = layer.name;
    slider.setAttribute("aria-valuetext", `${layer.name}, ${Number(slider.value) + 1} of ${data.layers.length}`);
    const bars = layer.bars.map((b) => `${b.total} in H${b.dimension}${b.total > b.counts.reduce((s, c) => s + c, 0) ? " (the longest are shown)" : ""}`);
    status.textContent = `${layer.name}: ${layer.points} points, ${layer.distinct} distinct, scale ${show(layer.scale)}; finite bars: ${bars.join(", ")}.`;
  };
  const hide = () => {
    tip.hidden = true;
    for (const element of root.querySelectorAll(".ring, .cursor")) element.setAttribute("visibility", "hidden");
  };
  const say = (svg, text, x, y) => {
    const box = svg.getBoundingClientRect(), outer = root.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    const left = box.left - outer.left + x * box.width / W, down = box.top - outer.top + y * box.height / H;
    tip.style.left = `${Math.max(0, Math.min(left + 12, outer.width - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, down - tip.offsetHeight - 10)}px`;
  };
  const choose = (index, aloud) => {
    chosen = index;
    const point = points[index];
    const ring = diagram.querySelector(".ring");
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    ring.setAttribute("visibility", "visible");
    say(diagram, words(point), point.x, point.y);
    if (aloud) status.textContent = `Bar ${index + 1} of ${points.length}, by lifetime. ${words(point)}`;
  };
  const along = (share, aloud) => {
    const { layer, limit } = frame;
    const distance = Math.max(0, Math.min(1, share)) * limit;
    const { at, values } = layer.betti;
    let k = -1;
    while (k + 1 < at.length && at[k + 1] <= distance) k++;
    const counts = values.map((row, d) => visible(d) ? `H${d}: ${k < 0 ? 0 : row[k]}` : "").filter(Boolean);
    const text = `distance ${show(Number(distance.toPrecision(3)))}: ${counts.join(", ")} alive`;
    const x = LEFT + (W - LEFT - RIGHT) * distance / limit;
    const line = curves.querySelector(".cursor");
    for (const end of ["x1", "x2"]) line.setAttribute(end, x);
    line.setAttribute("visibility", "visible");
    curves.dataset.share = distance / limit;
    say(curves, text, x, TOP + 30);
    if (aloud) status.textContent = text;
  };
  const place = (svg, event) => {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) * W / box.width, (event.clientY - box.top) * H / box.height];
  };
  diagram.addEventListener("pointermove", (event) => {
    const [x, y] = place(diagram, event);
    let best = -1, least = 14 ** 2;
    points.forEach((point, index) => {
      const away = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (away < least) [best, least] = [index, away];
    });
    if (best >= 0) choose(best, false); else hide();
  });
  curves.addEventListener("pointermove", (event) => along((place(curves, event)[0] - LEFT) / (W - LEFT - RIGHT), false));
  for (const svg of [diagram, curves]) {
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
  }
  diagram.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: chosen + 1, ArrowDown: chosen + 1, ArrowLeft: chosen - 1, ArrowUp: chosen - 1, Home: 0, End: points.length - 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves) || !points.length) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(points.length - 1, moves[event.key])), true);
  });
  curves.addEventListener("keydown", (event) => {
    const now = Number(curves.dataset.share ?? 0);
    const moves = { ArrowRight: now + 0.02, ArrowLeft: now - 0.02, Home: 0, End: 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    along(moves[event.key], true);
  });
  for (const control of [slider, same, ...boxes]) control.addEventListener("input", draw);
  draw();
  root.hidden = false;
}
// Closed pages of figures are opened for the printer.
addEventListener("beforeprint", () => { for (const page of document.querySelectorAll("details")) page.open = true; });
