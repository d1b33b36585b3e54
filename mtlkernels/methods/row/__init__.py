"""Methods that work on the task gradients entry by entry or average them over steps."""
