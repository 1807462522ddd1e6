"""Imported before torch: without a GPU, Triton is to interpret its kernels, which it decides when it is imported."""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
