"""Import before torch: threads of a CPU that wait for each other sleep, unless the environment says otherwise.

By default they spin: then the cores' clock (``clock.py``) counts waiting as work, and on a machine with other work a thread that
spins keeps the one from running that it waits for.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
