"""Two test workers and the ranks they start share two cores: one thread each, set before torch."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
