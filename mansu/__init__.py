"""MANSU: mechanistic machine unlearning that survives 4-bit quantization.

Data flows one way, each step an immutable value that can be saved, loaded and shown:
subject → task → attribution → circuit → edit → NF4 report → verdict.
"""

__version__ = "0.1.0"
