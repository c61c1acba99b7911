"use strict";
// Greenroom's pages: what changes is patched in, so that focus, scroll, selection and half-typed forms stay. Everything
// works without this script, but by loading the page anew.

// Before anything is drawn.
const root = document.documentElement;
const THEMES = ["", "light", "dark"];
const stored = () => { try { return localStorage.getItem("theme") || ""; } catch { return ""; } };
const setTheme = (theme) => { if (theme) { root.dataset.theme = theme; } else { delete root.dataset.theme; } };
setTheme(THEMES.includes(stored()) ? stored() : "");

const byId = (id) => document.getElementById(id);

// ---- patching: make *old* like *fresh*, keeping the nodes that are the same thing

const keyOf = (node) => (node.nodeType === 1 ? node.dataset.key || node.id || "" : "");
const isSame = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
const isDirty = (field) =>
  field === document.activeElement ||
  (field.type === "checkbox" || field.type === "radio" ? field.checked !== field.defaultChecked : field.value !== field.defaultValue);

function patch(old, fresh) {
  if (old.nodeType !== 1) {
    if (old.nodeValue !== fresh.nodeValue) { old.nodeValue = fresh.nodeValue; }
    return;
  }
  if (old.isEqualNode(fresh)) { return; }
  if (old.matches("input, textarea, select") && isDirty(old)) { return; } // it is being typed in
  for (const { name } of [...old.attributes]) {
    const isOurs = (name === "open" && old.matches("details, dialog")) || name === "hidden";
    if (!fresh.hasAttribute(name) && !isOurs) { old.removeAttribute(name); }
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) { old.setAttribute(name, value); }
  }
  patchChildren(old, fresh);
}

function patchChildren(old, fresh) {
  const keyed = new Map();
  for (const child of old.children) { if (keyOf(child)) { keyed.set(keyOf(child), child); } }
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = keyOf(wanted);
    const known = key ? keyed.get(key) : null;
    if (known && isSame(known, wanted)) {
      if (known === at) { at = at.nextSibling; } else { old.insertBefore(known, at); }
      patch(known, wanted);
    } else if (at && !keyOf(at) && !key && isSame(at, wanted)) {
      const next = at.nextSibling;
      patch(at, wanted);
      at = next;
    } else {
      old.insertBefore(wanted, at);
    }
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

function swap(id, html) {
  const old = byId(id);
  const fresh = new DOMParser().parseFromString(html, "text/html").body.firstElementChild;
  if (!old || !fresh) { return; }
  patch(old, fresh);
  filterAll();
  tellTimes();
}

// ---- live

const DEAF_S = 30; // nothing was heard: the stream is dead
const MOST_WAIT_S = 30;

function live() {
  let source = null, heardAt = 0, tries = 0, timer = 0;
  const mark = byId("live"), text = byId("live-text");
  const say = (told, isOn) => {
    if (text.textContent !== told) { text.textContent = told; }
    mark.classList.toggle("on", isOn);
    mark.classList.toggle("off", !isOn);
    mark.hidden = false;
  };
  const close = () => { if (source) { source.close(); source = null; } };
  const stop = (told) => { close(); clearTimeout(timer); say(told, false); };
  const again = (why) => {
    close();
    const waitS = Math.min(MOST_WAIT_S, 2 ** tries) * (0.75 + Math.random() / 2);
    tries += 1;
    say(`paused: ${why}; trying again`, false);
    clearTimeout(timer);
    timer = setTimeout(open, waitS * 1000);
  };
  const ended = () => stop("paused: your login has ended; run greenroom dashboard");
  const ask = async () => { // a stream does not say why it failed
    try {
      const answer = await fetch(location.href, { method: "GET", credentials: "same-origin", cache: "no-store", headers: { "Accept": "text/html" } });
      if (answer.status === 401) { ended(); } else if (answer.status === 404) { stop("paused: this is gone"); } else { again("the stream was refused"); }
    } catch { again("the node does not answer"); }
  };
  function open() {
    if (document.hidden) { return; }
    close();
    const have = [...document.querySelectorAll("[data-live]")].map((each) => each.dataset.live).join(".");
    const query = new URLSearchParams({ page: document.body.dataset.page, have });
    const mine = source = new EventSource(`/ui/live?${query}`);
    const hear = (tell) => (event) => { if (mine === source) { heardAt = Date.now(); tries = 0; tell(JSON.parse(event.data)); } };
    mine.addEventListener("beat", hear((told) => say(told.trouble ? `paused: ${told.trouble}` : "live", !told.trouble)));
    mine.addEventListener("region", hear((told) => { swap(told.id, told.html); say("live", true); }));
    mine.addEventListener("end", hear(ended));
    mine.addEventListener("error", () => { if (mine === source) { close(); ask(); } });
  }
  setInterval(() => { if (source && Date.now() - heardAt > DEAF_S * 1000) { again("nothing was heard for a while"); } }, 5000);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); clearTimeout(timer); } else { open(); } // nobody looks: nobody has to render
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted) { open(); } });
  heardAt = Date.now();
  open();
}

// ---- a task's events: each comes once and is put behind the others, so that a thousand cost no more than ten

const MOST_EVENTS = 500; // on the page; all of them are at the API
const MOST_SHOWN = 2000; // characters of one

function follow(list) {
  const row = byId("event").content.firstElementChild, box = list.parentElement;
  let after = list.dataset.after, reading = null, tries = 0, timer = 0;
  const made = (told) => {
    const item = row.cloneNode(true), [seq, time, type, data] = item.children, at = new Date(told.at);
    const text = JSON.stringify(told.data);
    seq.textContent = told.seq;
    time.dateTime = told.at;
    time.dataset.clock = "";
    time.textContent = at.toISOString().slice(11, 19);
    time.title = `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
    type.textContent = told.type;
    data.textContent = text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}…` : text;
    return item;
  };
  const add = (all) => {
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const fresh = all.slice(-MOST_EVENTS).map(made);
    list.append(...fresh);
    const over = list.children.length - MOST_EVENTS;
    for (let n = 0; n < over; n += 1) { list.firstElementChild.remove(); }
    if (over > 0 || fresh.length < all.length) { byId("events-earlier").hidden = false; }
    if (isAtEnd) { box.scrollTop = box.scrollHeight; }
  };
  const again = (inS) => { clearTimeout(timer); timer = setTimeout(read, inS * 1000); };
  async function read() {
    if (document.hidden || reading) { return; }
    const mine = reading = new AbortController();
    let isOver = false;
    try {
      const answer = await fetch(list.dataset.events, { signal: mine.signal, cache: "no-store", headers: { "Last-Event-ID": after } });
      isOver = answer.status === 204 || (answer.status >= 400 && answer.status < 500 && answer.status !== 429);
      if (answer.status !== 200) { return; }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = "", got = await reader.read(); !got.done; got = await reader.read()) {
        const parts = (rest + got.value).split("\n\n");
        rest = parts.pop();
        const all = parts.map((part) => /^data: (.*)$/m.exec(part)).filter(Boolean).map(([, data]) => JSON.parse(data));
        if (all.length) { add(all); after = String(all.at(-1).seq); tries = 0; }
      }
    } catch { // what it asks for next is what it has not got
    } finally {
      reading = null;
      tries += 1;
      if (!isOver && !mine.signal.aborted) { again(Math.min(MOST_WAIT_S, 2 ** (tries - 1))); }
    }
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { clearTimeout(timer); if (reading) { reading.abort(); } } else { again(0); }
  });
  box.scrollTop = box.scrollHeight;
  if ("events" in list.dataset) { read(); }
}

// ---- times, filters, forms

function tellTimes() {
  for (const each of document.querySelectorAll("time[datetime]:not([data-clock])")) {
    const passedS = (Date.now() - Date.parse(each.dateTime)) / 1000;
    const [unitS, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([s]) => Math.abs(passedS) >= s) || [0, ""];
    const span = unitS ? `${Math.floor(Math.abs(passedS) / unitS)} ${unit}` : "";
    const told = span ? (passedS > 0 ? `${span} ago` : `in ${span}`) : passedS >= 0 ? "just now" : "soon";
    if (each.textContent !== told) { each.textContent = told; }
  }
}

function filterAll() {
  for (const field of document.querySelectorAll("input[data-filter]")) {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const table = field.closest(".filter").nextElementSibling;
    for (const row of table.querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  }
}

function confirmed(summary) {
  const details = summary.parentElement, form = summary.closest("form"), dialog = byId("confirm");
  byId("confirm-text").textContent = details.querySelector("p").textContent;
  byId("confirm-yes").textContent = details.querySelector("button").textContent;
  byId("confirm-yes").onclick = () => {
    dialog.close();
    if (form.isConnected) { form.requestSubmit(); } else { location.reload(); } // what was asked about is another thing by now
  };
  dialog.showModal();
  byId("confirm-no").focus(); // what does nothing is the nearest
}

// ---- keys

let isGoing = 0;
function onKey(event) {
  const isTyping = event.target.matches("input, textarea, select, [contenteditable]");
  if (event.ctrlKey || event.altKey || event.metaKey || isTyping || document.querySelector("dialog[open]")) { return; }
  if (event.key === "?") { event.preventDefault(); byId("help").showModal(); return; }
  if (event.key === "/") {
    const field = document.querySelector("input[data-filter], input[type=search]");
    if (field) { event.preventDefault(); field.focus(); field.select(); }
    return;
  }
  if (event.key === "g") { isGoing = Date.now(); return; }
  if (Date.now() - isGoing < 1500) {
    const link = [...document.querySelectorAll("nav [data-key]")].find((each) => each.dataset.key === event.key);
    if (link) { event.preventDefault(); link.click(); }
  }
  isGoing = 0;
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  const theme = byId("theme");
  const name = () => { theme.textContent = `Theme: ${root.dataset.theme || "system"}`; };
  theme.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme || "") + 1) % THEMES.length];
    setTheme(next);
    try { localStorage.setItem("theme", next); } catch { /* then it holds for this page */ }
    name();
  });
  name();
  theme.hidden = byId("keys").hidden = false;
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  document.addEventListener("keydown", onKey);
  document.addEventListener("input", (event) => { if (event.target.matches("[data-filter]")) { filterAll(); } });
  document.addEventListener("click", (event) => {
    const summary = event.target.closest("details.confirm > summary");
    if (summary) { event.preventDefault(); confirmed(summary); }
  });
  tellTimes();
  setInterval(tellTimes, 20000);
  if (byId("events")) { follow(byId("events")); }
  if ("isLive" in document.body.dataset) { live(); }
});
