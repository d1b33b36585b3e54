"""What a run records, and what its records say: monitor, sinks, figures, the report command."""
