"""Traces: how a machine's events leave it, and what is made of them (docs/trace.md)."""
