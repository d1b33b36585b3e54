"""Classes for libraries that ask for one. Nothing here is imported unless you import it."""
