"""Benchmarks: `python -m benchmarks` times directions and steps; one script answers one question.

Run the scripts from the repository's root, for example `python -m benchmarks.solvers`.
"""
