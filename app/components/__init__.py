"""Components of our own, on ``st.components.v2``."""
