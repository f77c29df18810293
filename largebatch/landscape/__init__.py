"""The command `largebatch landscape`: draw the loss around a finished run, and between two runs.

Pictures are lines and planes along filter-normalised directions, paths between two networks, and
smoothed losses. Points are measured on all ranks; an interrupted landscape can be continued.
"""
