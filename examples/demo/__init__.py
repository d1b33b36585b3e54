"""`python -m examples.demo`: trains small networks on data that packages ship, and compares."""
