"""A weight on the line of the sixteen NF4 codes, to drag with a finger, a mouse or the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

HTML = """
<div class="line">
  <div class="scale">
    <svg aria-hidden="true" preserveAspectRatio="none" viewBox="-1 0 2 1"></svg>
    <div class="labels" aria-hidden="true"></div>
    <div class="hold" role="slider" tabindex="0"></div>
  </div>
</div>
"""

CSS = """
.line { padding: 0 1rem; font-family: var(--st-font); color: var(--st-text-color); }
.scale { position: relative; height: 9.5rem; touch-action: pan-y; user-select: none; }
svg { position: absolute; inset: 2.6rem 0 auto 0; width: 100%; height: 3rem; overflow: visible; }
.labels span { position: absolute; transform: translateX(-50%); font-size: 0.75rem;
  white-space: nowrap; }
.labels .code { top: 5.8rem; }
.labels .end { top: 7.4rem; }
.labels .end.left { transform: none; } .labels .end.right { transform: translateX(-100%); }
.labels .own, .labels .truth { background: var(--st-background-color); } /* over the marks */
.labels .own { top: 0.9rem; }
.labels .truth { top: -0.2rem; font-weight: 600; color: var(--st-text-color); }
.hold { position: absolute; top: 2.1rem; width: 2.75rem; height: 4rem; margin-left: -1.375rem;
  cursor: ew-resize; touch-action: none; border-radius: 0.5rem; }
.hold::before { content: ""; position: absolute; left: 50%; top: 0; bottom: 0; width: 4px;
  margin-left: -2px; background: var(--st-primary-color); }
.hold::after { content: ""; position: absolute; left: 50%; top: 50%; width: 1.25rem;
  height: 1.25rem; margin: -0.625rem 0 0 -0.625rem; border-radius: 50%;
  background: var(--st-primary-color); border: 2px solid var(--st-background-color); }
.hold:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
.hold[aria-disabled="true"] { cursor: default; }
@media (max-width: 640px) { /* every other code lower: they are as near as their numbers are wide */
  .line { padding: 0; }
  .labels .code:nth-child(even) { top: 6.7rem; }
  .labels .end { top: 7.9rem; }
}
"""

JS = """
const NS = "http://www.w3.org/2000/svg";

export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".line");
  const scale = root.querySelector(".scale"), svg = root.querySelector("svg");
  const labels = root.querySelector(".labels"), hold = root.querySelector(".hold");
  const place = (x) => `${(x + 1) * 50}%`;
  const clamp = (x) => Math.max(-1, Math.min(1, x));

  svg.replaceChildren();
  labels.replaceChildren();
  const put = (shape, attributes) => {
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    svg.append(shape);
  };
  const draw = (x, y1, y2, colour, width, dash) => {
    const line = document.createElementNS(NS, "line");
    put(line, { x1: x[0], x2: x[1], y1, y2, stroke: colour, "stroke-width": width,
      "vector-effect": "non-scaling-stroke", "stroke-dasharray": dash || "" });
  };
  const write = (x, text, kind) => {
    const span = document.createElement("span");
    span.className = kind;
    span.style.left = place(x);
    span.textContent = text;
    labels.append(span);
  };
  const text = "var(--st-text-color)";
  if (data.bin) {
    const band = document.createElementNS(NS, "rect");
    put(band, { x: data.bin[0], y: 0, width: data.bin[1] - data.bin[0], height: 1,
      fill: "var(--st-primary-color)", "fill-opacity": 0.22 });
  }
  draw([-1, 1], 0.5, 0.5, text, 1.5);
  data.levels.forEach((x, code) => {
    draw([x, x], 0.12, 0.88, text, 1.5);
    write(x, code, "code");
  });
  for (const x of data.boundaries || []) draw([x, x], 0, 1, text, 1, "3 3");
  draw([data.own, data.own], -0.25, 1, text, 3);
  write(data.own, data.own_label, "own");
  if (data.truth != null) {
    draw([data.truth, data.truth], -0.6, 1, text, 3, "6 3");
    write(data.truth, data.truth_label, "truth");
  }
  write(-1, data.ends[0], "end left");
  write(1, data.ends[1], "end right");

  let value = data.value;
  const show = () => {
    hold.style.left = place(value);
    hold.setAttribute("aria-valuenow", value.toFixed(3));
    hold.setAttribute("aria-valuetext", `${value.toFixed(3)} of the block's largest weight`);
  };
  hold.setAttribute("aria-label", data.label);
  hold.setAttribute("aria-valuemin", "-1");
  hold.setAttribute("aria-valuemax", "1");
  hold.setAttribute("aria-disabled", String(Boolean(data.fixed)));
  show();
  hold.onpointerdown = hold.onpointermove = hold.onpointerup = null;
  hold.onkeydown = scale.onclick = null;
  if (data.fixed) return;

  let timer = 0;
  const tell = () => {
    clearTimeout(timer);
    timer = setTimeout(() => setStateValue("value", value), 150);
  };
  const at = (event) => {
    const box = scale.getBoundingClientRect();
    return clamp(((event.clientX - box.left) / box.width) * 2 - 1);
  };
  let held = false;
  hold.onpointerdown = (event) => { held = true; hold.setPointerCapture(event.pointerId); };
  hold.onpointermove = (event) => { if (held) { value = at(event); show(); } };
  hold.onpointerup = () => { if (held) { held = false; tell(); } };
  scale.onclick = (event) => { if (event.target !== hold) { value = at(event); show(); tell(); } };
  hold.onkeydown = (event) => {
    const step = { ArrowRight: 0.005, ArrowUp: 0.005, ArrowLeft: -0.005, ArrowDown: -0.005,
      PageUp: 0.05, PageDown: -0.05 }[event.key];
    if (event.key === "Home") value = -1;
    else if (event.key === "End") value = 1;
    else if (step) value = clamp(value + step);
    else return;
    event.preventDefault();
    show();
    tell();
  };
  return () => clearTimeout(timer);
}
"""

_mount = component("mansu_code_line", html=HTML, css=CSS, js=JS)


def line(
    key: str,
    label: str,
    levels: Sequence[float],
    own: float,
    *,
    own_label: str,
    value: float | None = None,
    bin: tuple[float, float] | None = None,
    boundaries: Sequence[float] = (),
    truth: tuple[float, str] | None = None,
    fixed: bool = False,
) -> float:
    """Draw the line and give the place that the weight was dragged to, −1 to 1.

    Args:
        label: of the handle, for a screen reader. levels: of the sixteen codes.
        own: where the weight is; own_label: what stands above it.
        value: where the handle is at first; at ``own`` by default.
        bin: the ends of a bin to shade. boundaries: to be drawn dashed.
        truth: a place to mark, and what stands above it.
        fixed: it cannot be dragged.
    """
    start = own if value is None else value
    shown = float(st.session_state.get(key, {}).get("value", start)) if not fixed else start
    data: dict[str, Any] = {
        "label": label,
        "levels": [round(x, 5) for x in levels],
        "own": own,
        "own_label": own_label,
        "value": shown,
        "bin": bin,
        "boundaries": list(boundaries),
        "truth": truth and truth[0],
        "truth_label": truth and truth[1],
        "fixed": fixed,
        "ends": ["−1: minus the largest", "the block's largest: 1"],
    }
    with st.container(key=f"code-{key}"):  # its place is kept: the style knows how high it is
        found = _mount(key=key, data=data, default={"value": start}, on_value_change=lambda: None)
    return float(found.value if not fixed and found.value is not None else start)
