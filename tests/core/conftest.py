"""Kernels that these tests ask for run in Triton's interpreter."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
