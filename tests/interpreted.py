"""Imported before torch: what it and Triton decide when they are imported, for tests and for the
commands that they run.

Without a GPU, Triton is to interpret its kernels. Tests run in two processes, each with one thread,
on two cores.
"""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
