"""From task gradients to a direction: layout, Gram matrix, weighting, weighted sum."""
