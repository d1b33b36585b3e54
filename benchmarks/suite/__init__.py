"""The suite behind `python -m benchmarks`: cases, providers, an oracle, timing, tables, figures."""
