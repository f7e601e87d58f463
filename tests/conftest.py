"""What every test shares: a passive thread pool, and models small enough to build in milliseconds."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
