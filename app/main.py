"""The app's entry: ``streamlit run app/main.py``."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

PAGES = Path(__file__).resolve().parent.parent / "pages"
STEPS = (
    ("attribution", "Attribution", ":material/conversion_path:"),
    ("circuit", "Circuit", ":material/account_tree:"),
    ("unlearn", "Unlearn", ":material/ink_eraser:"),
    ("nf4", "NF4", ":material/compress:"),
    ("compare", "Compare", ":material/compare_arrows:"),
    ("review", "Review", ":material/fact_check:"),
)

st.set_page_config(page_title="MANSU", layout="wide")
pages = [
    st.Page(PAGES / f"{name}.py", title=title, icon=icon, url_path=name)
    for name, title, icon in STEPS
]
st.navigation(pages).run()
