"""Learn: why forgetting comes back, ten steps of twenty minutes."""

from __future__ import annotations

import streamlit as st

from app.lesson import view

st.title("Why forgetting comes back")
view.show()
