"""Methods around another method: reused weights, weights by part, rescaled gradients."""
