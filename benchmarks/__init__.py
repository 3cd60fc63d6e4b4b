"""Benchmarks, run by scripts/bench from the root of the tree; no part of the installed package.

A module of a run of all has `measure(runs: int = RUNS) -> list[Figure]`, which measures everything
`runs` times, minivmm and its peer in turns. As a program it is `figures.present(measure)`. The
others print what they find.
"""
