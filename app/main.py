"""The app, which ``serve.py`` serves: its pages, and what each of them has."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import access, address, bar, tour

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "pages"
STEPS = (  # the first is the default page; the last word is its group in the navigation
    ("home", "Home", ":material/home:", ""),
    ("attribution", "Attribution", ":material/conversion_path:", "Explore"),
    ("circuit", "Circuit", ":material/account_tree:", "Explore"),
    ("ask", "Ask", ":material/forum:", "Explore"),
    ("unlearn", "Unlearn", ":material/ink_eraser:", "Explore"),
    ("nf4", "NF4", ":material/compress:", "Explore"),
    ("compare", "Compare", ":material/compare_arrows:", "Explore"),
    ("review", "Review", ":material/fact_check:", "Review"),
    ("leaderboard", "Leaderboard", ":material/leaderboard:", "Review"),
    ("learn", "Lesson", ":material/school:", "Learn"),
    ("glossary", "Glossary", ":material/dictionary:", "Learn"),
)

# An icon of our own, and said first: a page's Material icon would be fetched from outside for the
# browser's tab.
st.set_page_config("MANSU", str(HERE / "icon.svg"), "wide", 300)

groups: dict[str, list[st.Page]] = {}
for name, title, icon, group in STEPS:
    # Streamlit serves the first page at / alone; its own path is that of the alias below.
    path = name if groups else "start"
    page = st.Page(PAGES / f"{name}.py", title=title, icon=icon, url_path=path)
    groups.setdefault(group, []).append(page)
first = next(iter(groups.values()))[0]


def _to_first() -> None:
    """What the first page's own path shows."""
    st.switch_page(first, query_params=st.query_params.to_dict())


alias = st.Page(_to_first, title=first.title, url_path=STEPS[0][0], visibility="hidden")
groups[STEPS[0][3]].append(alias)
page = st.navigation(groups)
st.set_page_config(f"{page.title} · MANSU")
if access.granted():
    bar.draw()
    tour.draw(name := page.url_path or STEPS[0][0])
    address.say_unknown(name)
    page.run()
