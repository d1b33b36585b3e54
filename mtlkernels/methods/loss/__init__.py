"""Methods that weigh the losses themselves and take one backward pass."""
