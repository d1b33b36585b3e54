"""Methods that weigh the tasks by the Gram matrix of their gradients."""
