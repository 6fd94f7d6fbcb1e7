"""Without a GPU Triton's kernels run in its interpreter.

It must be asked for before Triton is imported, which diffusers does by way of torch's compiler: so this
module comes before all that imports the product.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["IS_ASKED_FOR"]

IS_ASKED_FOR = not Path("/dev/nvidiactl").exists()
if IS_ASKED_FOR:
    os.environ.setdefault("TRITON_INTERPRET", "1")
