"""Glossary: what does each word mean?"""

from __future__ import annotations

import streamlit as st

from app import glossary, state

st.title("Glossary")
st.markdown("**What does each word mean?**")
query = st.text_input("Find a word", key="word", bind="query-params")
terms = glossary.found(str(query or ""))
if not terms:
    st.info("No word here is like that: try a shorter one.")
with st.container(key="terms"):
    for term, meaning in terms.items():
        st.header(term, anchor=glossary.anchor(term))
        st.markdown(state.plain(meaning))
