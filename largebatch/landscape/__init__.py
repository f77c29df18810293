"""`largebatch landscape`: pictures of the loss around a finished run, and between two."""
