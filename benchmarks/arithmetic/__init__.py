"""Models on paper: what the numbers of bytes and operations predict. They measure nothing."""
