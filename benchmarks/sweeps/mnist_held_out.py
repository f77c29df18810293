"""Write MNIST's training images as an .npz whose test set is their last 10,000, to tune on.

python benchmarks/sweeps/mnist_held_out.py DATA held_out.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from largebatch.data.mnist import read_idx

if __name__ == "__main__":
    data, output = sys.argv[1:]
    raw = Path(data) / "MNIST" / "raw"
    images = read_idx(raw / "train-images-idx3-ubyte", dimensions=3)
    labels = read_idx(raw / "train-labels-idx1-ubyte", dimensions=1).astype(np.int64)
    np.savez(
        output,
        x_train=images[:50000],
        y_train=labels[:50000],
        x_test=images[50000:],
        y_test=labels[50000:],
    )
