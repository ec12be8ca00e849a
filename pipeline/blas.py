"""One thread for the linear algebra of this process; import it before anything that imports numpy.

The products of the verify stage are small: OpenBLAS would spread them over all cores and let these spin between two of
them, at five times the CPU of a comparison (42 instead of 9 ms on two busy cores). A variable that is set stays.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
