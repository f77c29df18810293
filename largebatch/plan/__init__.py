"""The command ``largebatch plan``: predict how a training step scales on a cluster.

It runs the simulator of ``largebatch.simulate`` and writes a table and an HTML page.
"""
