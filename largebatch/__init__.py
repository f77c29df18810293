"""Train at the largest batch your cluster can use without losing accuracy."""

__version__ = "0.1.0"
