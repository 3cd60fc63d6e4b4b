"""Traces: how a machine's events leave it, and what is made of them (docs/trace.md)."""

SCHEMA = 1
"""Of the stream; it only grows, so this stays until something must be taken away."""
