"""One step in one process, from losses to .grad, by each of its routes."""
