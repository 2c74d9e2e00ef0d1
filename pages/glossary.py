"""Glossary: what does each word mean?"""

from __future__ import annotations

import streamlit as st

from app import glossary, words

st.title("Glossary")
st.markdown("**What does each word mean?**")
query = st.text_input("Find a word", key="word", bind="query-params")
terms = glossary.found(str(query or ""))
if not terms:
    st.info("No word here is like that: try a shorter one.")
with st.container(key="terms"):
    # One element: a hundred would be sent and drawn one after the other. A heading's anchor, which
    # Streamlit makes of its text, is that of ``glossary.anchor``.
    st.markdown("\n\n".join(f"## {term}\n{words.plain(text)}" for term, text in terms.items()))
