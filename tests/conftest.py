"""What every test shares: idle threads sleep instead of spinning."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
