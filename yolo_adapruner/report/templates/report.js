"use strict";
// The gallery: filters and sorts rows, opens one in the viewer, copies and exports paths. All text goes in as text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const STEP = 48, SCALE = 9999;

  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", () => copy(button.dataset.copy, button));
  if (!$("grid")) return;

  const columns = data.columns, rows = data.paths.map((_, n) => n), ticked = new Set();
  const path = (n) => data.root + data.paths[n];
  const file = (text) => text.slice(text.lastIndexOf("/") + 1);
  const url = (text) => "file://" + text.split("/").map(encodeURIComponent).join("/");
  const className = (c) => data.names[c] ?? `class ${c}`;
  const number = (name, n) => columns[name]?.[n] ?? null;
  let filtered = rows, shown = 0, reason = null, current = -1;

  const SORTS = {
    "lowest score": (n) => number("logit", n),
    "highest score": (n) => negative(number("logit", n)),
    "most suspicious": (n) => negative(suspicion(n)),
    "most alike": (n) => negative(number("similarity", n)),
    "most boxes": (n) => negative(number("boxes", n)),
    "path": null,
  };
  const NEEDS = { "most suspicious": data.suspicion, "most alike": columns.similarity, "most boxes": columns.boxes };
  const TITLES = {
    weight: "weight at the end", logit: "score", signal: "signal", signal_mean: "signal, mean of epochs",
    signal_spread: "signal, spread of epochs", epochs_seen: "joint epochs seen", seen: "whole views seen",
    similarity: "similarity to the nearest image", lot: "lot, the highest go first",
  };
  // core/reasons.py
  const SUSPECT = "label suspect", DUPLICATE = "duplicate", DOUBTFUL = "doubtful", DRAWN = "drawn", EASY = "easy", OUTLIER = "outlier";
  const MEANINGS = {
    [SUSPECT]: "Their labels are likelier wrong than right.",
    [DUPLICATE]: "An image that was kept shows the same.",
    [DOUBTFUL]: "Their labels are likelier right than wrong, but not by far. More images had to go, and these went before any that nothing speaks against.",
    [DRAWN]: "Nothing speaks against them. More images had to go than were suspect or there twice, and the lot fell on these.",
    [EASY]: "They had little left to teach: at least half of the set has a higher signal.",
    [OUTLIER]: "Harder than most, and nothing says that their labels are to blame.",
  };
  const KINDS = {
    shifted: "a shifted box", swapped: "a wrong class", missing: "a missing box",
    spurious: "a box around nothing", shuffled: "the labels of another image",
  };

  function suspicion(n) { return data.suspicion[n] ?? null; }

  function negative(value) { return value === null ? null : -value; }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function drawing(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // ---- boxes and pictures

  function truth(n) { return boxed(data.boxes[n] ?? []); }

  function boxed(flat) {
    const found = [];
    for (let i = 0; i < flat.length; i += 5) found.push({ name: className(flat[i]), box: flat.slice(i + 1, i + 5) });
    return found;
  }

  function detected(n) {
    return (data.found[n] ?? []).map(([c, p, ...box]) => ({ name: `${className(c)} ${Math.round(100 * p)} %`, box }));
  }

  function overlay(sets) {
    const svg = drawing("svg", { viewBox: `0 0 ${SCALE} ${SCALE}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const [kind, boxes] of sets)
      for (const { box: [x1, y1, x2, y2] } of boxes)
        for (const line of ["halo", kind])
          svg.append(drawing("rect", { class: line, x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) }));
    return svg;
  }

  function tags(sets) {
    const percent = (value) => `${(value / SCALE * 100).toFixed(2)}%`;
    return sets.flatMap(([kind, boxes]) => boxes.map(({ name, box: [x1, y1, x2, y2] }) => {
      const below = kind === "seen", right = x1 > 0.7 * SCALE;
      return element("span", {
        class: `tag ${kind}${!below && y1 < 600 ? " inside" : ""}${right ? " right" : ""}`,
        style: `${right ? `right:${percent(SCALE - x2)}` : `left:${percent(x1)}`};top:${percent(below ? Math.min(y2, 9500) : y1)}`,
      }, name);
    }));
  }

  function frame(picture, box, ...children) {
    const [width, height] = picture;
    const made = element("div", { class: `frame ${width / height >= box ? "wide" : "tall"}`, style: `aspect-ratio:${width}/${height}` }, ...children);
    return made;
  }

  function thumb(n) {
    const picture = data.pictures[n], boxes = overlay([["truth", truth(n)]]);
    const inner = picture
      ? frame(picture, 4 / 3, element("img", { src: picture[2], alt: "", loading: "lazy", decoding: "async" }), boxes)
      : element("span", { class: "frame sketch" }, boxes);
    return element("span", { class: "thumb" }, inner);
  }

  // ---- the list

  function words(n) {
    if (data.whole) return `${labelled(n)}, ${data.reasons[n]}`;
    return data.kinds[n] ? `${data.reasons[n]}: ${data.kinds[n]}` : data.reasons[n];
  }

  function evidence(n) {
    const said = data.reasons[n], alike = number("similarity", n), signal = number("signal", n);
    if (said === SUSPECT && suspicion(n) !== null) return `P(wrong) ${chance(suspicion(n))}`;
    if (said === DUPLICATE && alike !== null) return `P(same) ${probability(alike)}`;
    return signal === null ? "no signal" : `signal ${brief(signal)}`;
  }

  function brief(value) { return value >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(2))); }

  function chance(log) { return probability(1 / (1 + Math.exp(-log))); }

  function probability(p) { return p > 0.9995 ? "> 0.999" : p < 0.005 ? "< 0.01" : p.toFixed(p > 0.995 ? 3 : 2); }

  function equals(text) { return (/^[<>]/.test(text) ? text : `= ${text}`).replace(" ", "\u00a0"); }

  function card(n) {
    const weight = number("weight", n);
    const box = element("input", {
      type: "checkbox", "aria-label": `Select ${data.paths[n]}`,
      onchange: (event) => { tick(n, event.target.checked); },
    });
    box.checked = ticked.has(n);
    return element("li", { class: ticked.has(n) ? "ticked" : null, "data-row": n },
      element("button", { type: "button", class: "card", onclick: () => open(n), title: path(n) },
        thumb(n), element("b", {}, file(data.paths[n])),
        element("span", { class: "meta" }, words(n)),
        element("span", { class: "meta" }, `${evidence(n)}, ${weight === null ? "no weight" : `weight ${weight.toFixed(2)}`}`)),
      box);
  }

  function mean() {
    const kinds = new Map();
    for (const n of filtered) if (data.kinds[n]) kinds.set(data.kinds[n], (kinds.get(data.kinds[n]) ?? 0) + 1);
    const listed = [...kinds].sort((a, b) => b[1] - a[1]).map(([kind, many]) => `${kind} ${count(many)}`).join(", ");
    $("meaning").textContent = MEANINGS[reason] ? MEANINGS[reason] + (reason === SUSPECT && listed ? ` By kind: ${listed}.` : "") : "";
  }

  function refresh() {
    const wanted = $("class").value, low = Number($("low").value || 0), high = Number($("high").value || 1);
    const part = $("search").value.trim().toLowerCase();
    filtered = rows.filter((n) => {
      const weight = number("weight", n);
      return (reason === null || data.reasons[n] === reason)
        && (wanted === "" || data.classes[n].includes(Number(wanted)))
        && (weight === null ? low <= 0 && high >= 1 : weight >= low && weight <= high)
        && (part === "" || path(n).toLowerCase().includes(part));
    });
    const key = SORTS[$("sort").value];
    if (key) {
      const keys = new Map(filtered.map((n) => [n, key(n) ?? Infinity]));
      filtered.sort((a, b) => (keys.get(a) === keys.get(b) ? a - b : keys.get(a) - keys.get(b)));
    } else filtered.sort((a, b) => (data.paths[a] < data.paths[b] ? -1 : 1));
    $("grid").replaceChildren();
    mean();
    shown = 0;
    more();
  }

  function more() {
    const next = filtered.slice(shown, shown + STEP);
    shown += next.length;
    $("grid").append(...next.map(card));
    $("more").hidden = shown >= filtered.length;
    say();
  }

  function selection() { return ticked.size ? rows.filter((n) => ticked.has(n)) : filtered; }

  function say() {
    const all = filtered.length === rows.length ? `${count(rows.length)} images` : `${count(filtered.length)} of ${count(rows.length)} images`;
    $("count").textContent = ticked.size ? `${all}, ${count(ticked.size)} ticked` : all;
    const number = selection().length, noun = number === 1 ? "path" : "paths";
    $("copy").textContent = `Copy ${count(number)} ${noun}`;
    $("export").textContent = `Export ${count(number)} ${noun}`;
    $("copy").disabled = $("export").disabled = number === 0;
    $("tick").textContent = ticked.size ? "Clear ticks" : "Tick all";
    $("tick").disabled = filtered.length === 0 && ticked.size === 0;
  }

  function count(value) { return value.toLocaleString("en"); }

  function tick(n, on) {
    if (on) ticked.add(n); else ticked.delete(n);
    const item = $("grid").querySelector(`[data-row="${n}"]`);
    if (item) {
      item.classList.toggle("ticked", on);
      item.querySelector("input").checked = on;
    }
    say();
  }

  function download() {
    const text = selection().map((n) => path(n) + "\n").join("");
    const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: "selection.txt" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function copy(text, button) {
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", { "aria-hidden": "true", style: "position:fixed;opacity:0" });
      area.value = text;
      (button.closest("dialog") ?? document.body).append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    const before = button.textContent;
    button.textContent = done ? "Copied" : "Copying is not allowed here";
    setTimeout(() => { button.textContent = before; if (button === $("copy")) say(); }, 1200);
  }

  // ---- the viewer

  function open(n) {
    current = n;
    fill();
    if (!$("viewer").open) $("viewer").showModal();
    $("viewer").querySelector(".side").scrollTop = 0;
  }

  function move(by) {
    const place = filtered.indexOf(current) + by;
    if (place < 0 || place >= filtered.length) return;
    while (place >= shown) more();
    open(filtered[place]);
  }

  function fill() {
    const n = current, place = filtered.indexOf(n);
    $("place").textContent = `${count(place + 1)} of ${count(filtered.length)}`;
    $("previous").disabled = place <= 0;
    $("next").disabled = place >= filtered.length - 1;
    $("viewer-title").textContent = file(data.paths[n]);
    draw(n, true, true);
    const box = element("input", { type: "checkbox", onchange: (event) => { tick(n, event.target.checked); } });
    box.checked = ticked.has(n);
    $("details").replaceChildren(
      ...sentences(n).map((line) => element("p", {}, line)),
      layers(n),
      chart(n),
      element("div", { class: "actions" },
        element("label", {}, box, "Select"),
        element("button", { type: "button", onclick: (event) => copy(path(n), event.currentTarget) }, "Copy path"),
        element("a", { href: data.links[n] ?? url(path(n)), target: "_blank", rel: "noopener" }, "Open the original")),
      table(n));
  }

  function draw(n, showTruth, showFound) {
    const sets = [];
    if (showTruth) sets.push(["truth", truth(n)]);
    if (showFound) sets.push(["seen", detected(n)]);
    const one = whole(data.pictures[n], data.links[n] ?? url(path(n)), `${data.paths[n]}, ${labelled(n)}`, sets);
    const twin = data.twins[n];
    if (!twin) { $("picture").replaceChildren(one); return; }
    const other = whole(data.twinPictures[n], url(twin), `its twin ${twin}`, showTruth ? [["truth", boxed(data.twinBoxes[n] ?? [])]] : []);
    $("picture").replaceChildren(element("figure", {}, one, element("figcaption", {}, `dropped: ${file(data.paths[n])}`)),
      element("figure", {}, other, element("figcaption", {}, `kept: ${file(twin)}`)));
  }

  function whole(picture, link, words, sets) {
    const image = element("img", { src: picture ? picture[2] : link, alt: words });
    const made = element("div", { class: "frame whole" }, image, overlay(sets), ...tags(sets));
    const fit = (width, height) => { made.style.setProperty("--ratio", width / height); };
    if (picture) {
      fit(picture[0], picture[1]);
      sharpen(image, link);
    }
    else {
      image.addEventListener("load", () => fit(image.naturalWidth, image.naturalHeight));
      image.addEventListener("error", () => made.replaceWith(element("p", {}, "This page has no copy of the image, and the original cannot be read from here.")));
    }
    return made;
  }

  function sharpen(image, link) {  // the copy is small; where the page is opened from disk, the original may be there
    if (location.protocol !== "file:") return;
    const original = new Image();
    original.addEventListener("load", () => { image.src = link; });
    original.src = link;
  }

  function labelled(n) {
    if (data.whole) return `labelled ${data.classes[n].map(className).join(", ")}`;
    const total = number("boxes", n) ?? truth(n).length;
    return total === 1 ? "one labelled box" : `${total} labelled boxes`;
  }

  function layers(n) {
    const found = detected(n).length > 0;
    if (!truth(n).length && !found) return element("span");
    const on = { truth: true, seen: true };
    const box = (kind, words) => element("label", {}, element("input", {
      type: "checkbox", checked: true,
      onchange: (event) => { on[kind] = event.target.checked; draw(n, on.truth, on.seen); },
    }), words);
    return element("div", { class: "actions" }, box("truth", "Labels"), found ? box("seen", "What the detector sees") : null);
  }

  function sentences(n) {
    const lines = [why(n)], seen = number("seen", n);
    if (suspicion(n) !== null && data.reasons[n] !== SUSPECT && data.reasons[n] !== DOUBTFUL) lines.push(`${doubt(n)}.`);
    if (data.history[n] && data.epochs.length > 1) {
      const w = history(n), ends = w[w.length - 1];
      const how = Math.abs(ends - w[0]) < 0.05 ? "stayed near" : ends < w[0] ? `fell from ${w[0].toFixed(2)} to` : `rose from ${w[0].toFixed(2)} to`;
      lines.push(`Its weight ${how} ${ends.toFixed(2)} between the epochs ${data.epochs[0]} and ${data.epochs[data.epochs.length - 1]}.`);
    }
    if (number("logit", n) === null) lines.push("The joint stage never saw it, so it has no score.");
    else if (seen !== null && seen < 1) lines.push("Less than one whole view of it was judged: its score rests on little.");
    if (data.whole) lines.push(`It is ${labelled(n)}.`);
    else lines.push(data.unreadable.includes(n) ? "Its label file cannot be read."
      : data.boxes[n] === null ? `It has ${labelled(n)}, which this page has no room for.` : `It has ${labelled(n)}.`);
    return lines;
  }

  function why(n) {
    const said = data.reasons[n], alike = number("similarity", n), signal = number("signal", n);
    const median = data.median === null ? "" : ` the median of ${brief(data.median)}`;
    if (said === SUSPECT)
      return `Label suspect${blame(n, ";")}.`;
    if (said === DUPLICATE)
      return `Duplicate of ${data.twins[n] ? file(data.twins[n]) : "another image"}, which was kept${alike === null ? "" : `: the nearest image shows the same with P\u00a0${equals(probability(alike))}`}.`;
    if (said === DOUBTFUL)
      return `Doubtful${blame(n, ",")}; more images had to go, and it went before any that nothing speaks against.`;
    if (said === DRAWN) return "Drawn by lot: nothing speaks against it, but more images had to go than were suspect or there twice.";
    if (said === EASY) return `Easy: its signal of ${brief(signal)} nats is not above${median}.`;
    if (said === OUTLIER)
      return signal === null ? "Outlier: nothing was ever seen of it."
        : `Outlier: its signal of ${brief(signal)} nats is above${median}, and nothing says that its labels are to blame.`;
    return said === "dropped" ? "Dropped for its low score." : `Dropped: ${said}.`;
  }

  function blame(n, mark) {
    const kind = data.kinds[n];
    return `${suspicion(n) === null ? "" : `: ${lower(doubt(n))}`}${kind ? `${mark} most likely ${KINDS[kind] ?? kind}` : ""}`;
  }

  function doubt(n) {
    return `Its labels are wrong with P\u00a0${equals(chance(suspicion(n)))} by ${data.judged ? "the judge" : "the channels"}`;
  }

  function lower(text) { return text[0].toLowerCase() + text.slice(1); }

  function history(n) {
    return Array.from(atob(data.history[n]), (c) => c.charCodeAt(0) / 255);
  }

  function chart(n) {
    if (!data.history[n] || data.epochs.length < 2) return element("span");
    const w = history(n), first = data.epochs[0], last = data.epochs[data.epochs.length - 1];
    const x = (e) => 34 + (e - first) / (last - first) * 276, y = (v) => 96 - 84 * v;
    const svg = drawing("svg", { class: "chart", viewBox: "0 0 320 124", role: "img", "aria-label": `Weight over the joint epochs: ${w.map((v) => v.toFixed(2)).join(", ")}` });
    for (const v of [0, 0.5, 1]) {
      svg.append(drawing("line", { class: "grid", x1: 34, x2: 310, y1: y(v), y2: y(v) }),
        drawing("text", { x: 28, y: y(v) + 4, "text-anchor": "end" }, String(v)));
    }
    svg.append(drawing("path", { class: "line c0", d: "M" + w.map((v, i) => `${x(data.epochs[i]).toFixed(1)} ${y(v).toFixed(1)}`).join("L") }),
      drawing("text", { x: 34, y: 112 }, `epoch ${first}`), drawing("text", { x: 310, y: 112, "text-anchor": "end" }, String(last)));
    return element("figure", {}, element("figcaption", {}, "Its weight over the joint epochs"), svg);
  }

  function table(n) {
    const list = element("dl", { class: "facts" });
    for (const [name, values] of Object.entries(columns)) {
      const value = values[n];
      if (value === null || value === "" || name === "boxes") continue;
      const spoken = typeof value === "number" ? String(Number(value.toPrecision(3))).replace("-", "−") : String(value);
      list.append(element("div", {}, element("dt", {}, TITLES[name] ?? name.replaceAll("_", " ")), element("dd", {}, spoken)));
    }
    return list;
  }

  // ---- controls

  const tally = new Map();
  for (const word of data.reasons) tally.set(word, (tally.get(word) ?? 0) + 1);
  if (tally.size === 1) reason = [...tally.keys()][0];
  const all = tally.size > 1 ? [[null, "all", rows.length]] : [];
  const choices = [...all, ...[...tally].sort((a, b) => b[1] - a[1]).map(([word, many]) => [word, word, many])];
  if (tally.size > 1 || !tally.has("dropped"))
    $("reasons").append(...choices.map(([value, name, many]) => {
      const button = element("button", { type: "button", "aria-pressed": String(value === reason), onclick: () => {
        reason = value;
        for (const other of $("reasons").children) other.setAttribute("aria-pressed", String(other === button));
        refresh();
      } }, `${name} `, element("small", {}, count(many)));
      return button;
    }));

  const classes = new Map();
  for (const row of data.classes) for (const c of row) classes.set(c, (classes.get(c) ?? 0) + 1);
  $("class").append(element("option", { value: "" }, "any"), ...[...classes].sort((a, b) => b[1] - a[1])
    .map(([c, many]) => element("option", { value: c }, `${className(c)} (${count(many)})`)));
  $("sort").append(...Object.keys(SORTS).filter((name) => !(name in NEEDS) || NEEDS[name]?.some((v) => v !== null))
    .map((name) => element("option", {}, name)));

  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); };
  $("class").addEventListener("change", refresh);
  $("sort").addEventListener("change", refresh);
  for (const id of ["low", "high", "search"]) $(id).addEventListener("input", soon);
  $("more").addEventListener("click", () => {
    const first = shown;
    more();
    $("grid").children[first]?.querySelector(".card").focus();
  });
  $("tick").addEventListener("click", () => {
    if (ticked.size) ticked.clear(); else filtered.forEach((n) => ticked.add(n));
    for (const item of $("grid").children) {
      const on = ticked.has(Number(item.dataset.row));
      item.classList.toggle("ticked", on);
      item.querySelector("input").checked = on;
    }
    say();
  });
  $("copy").addEventListener("click", (event) => copy(selection().map(path).join("\n"), event.currentTarget));
  $("export").addEventListener("click", download);
  $("close").addEventListener("click", () => $("viewer").close());
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  $("viewer").addEventListener("close", () => $("grid").querySelector(`[data-row="${current}"] .card`)?.focus());
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "ArrowRight") move(1);
    else return;
    event.preventDefault();
  });
  $("grid").addEventListener("keydown", (event) => {
    const item = event.target.closest("li"), cards = [...$("grid").children], here = cards.indexOf(item);
    const across = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -here, End: cards.length - 1 - here }[event.key];
    if (here < 0 || by === undefined) return;
    event.preventDefault();
    cards[Math.min(Math.max(here + by, 0), cards.length - 1)].querySelector(".card").focus();
  });
  refresh();
})();
