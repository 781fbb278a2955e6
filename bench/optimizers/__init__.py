"""The optimizer beside what people start from, and beside other optimisers.

Two systems that are timed in turns share the cores, and a pool of threads that spins when it has
nothing to do takes one from the other: ours took twice as long beside ONNX Runtime's.  So no pool
spins here, the baselines' neither.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's; read when it is imported
