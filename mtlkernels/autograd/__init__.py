"""From losses to task gradients: the graph, the backward passes and the checks of both."""
