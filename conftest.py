"""Settings that every test and every notebook kernel inherits; torch is imported after them."""

import os
from pathlib import Path

collect_ignore_glob = ["chapters/*/assignments/*"]  # graded by tests/course, not run by nbval

os.environ.setdefault("ATTN_STATIC", "1")  # figures emit HTML only, as they are stored
os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in outputs
for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
