"""A figure that the library draws as inline SVG: ``st.html`` would leave of it only its words."""

from __future__ import annotations

from streamlit.components.v2 import component

from mansu.report import svg

CSS = """
figure { margin: 0; max-width: 50rem; font-family: var(--st-font); color: var(--st-text-color); }
figcaption { font-size: 0.875rem; }
"""
JS = """
export default ({ data, parentElement }) => {
  parentElement.querySelector(".drawn").innerHTML = data;
};
"""
_mount = component("mansu.figure", html='<div class="drawn"></div>', css=svg.CSS + CSS, js=JS)


def figure(drawn: str, key: str) -> None:
    """Show a figure of ``mansu.report.svg``, which escapes what it did not write itself."""
    _mount(data=drawn, key=key)
