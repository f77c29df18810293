"""``largebatch plan``: the verb over the step simulator, and its page."""
