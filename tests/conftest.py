"""What every test runs under."""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # two test processes share two cores
settings.register_profile("tapeout", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("tapeout")
