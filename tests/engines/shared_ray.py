"""A Ray in a process of its own, for tests that join one: starting it takes longer than they do."""

from __future__ import annotations

import logging
import os
import sys

from oasis_core.engines.cluster import LOOPBACK, OBJECT_STORE


def main() -> None:
    """Print the address, then wait until standard input ends."""
    os.environ.update(LOOPBACK)
    import ray

    ray.init(
        address="local", num_cpus=2, object_store_memory=OBJECT_STORE, include_dashboard=False,
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
