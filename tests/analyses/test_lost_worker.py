"""Workers of a dask cluster that are killed while they compute."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from analyses.comparison.walk import cluster, mapped

ITEMS = range(8)


def slow_sums(values: np.ndarray, item: int) -> np.ndarray:
    time.sleep(0.05)
    return values.cumsum() * item


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_worker_killed_midway_changes_no_result(n_workers: int) -> None:
    function = partial(slow_sums, np.random.default_rng(0).random(1000))
    pids = []
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as local,
        Client(local, set_as_default=False) as client,
    ):

        def kill_after_the_second(futures: Sequence[Any]) -> Iterator[Any]:
            for i, future in enumerate(futures):
                if i == 2:
                    pids.extend(client.run(os.getpid).values())
                    os.kill(pids[0], signal.SIGKILL)
                yield future

        there = list(mapped(function, ITEMS, kill_after_the_second, local.scheduler_address))
        client.wait_for_workers(n_workers)
        assert pids[0] not in client.run(os.getpid).values()
    np.testing.assert_array_equal(there, list(mapped(function, ITEMS)))


def test_one_local_cluster_serves_a_whole_command() -> None:
    with cluster("local") as address:
        assert address is not None
        pids = [set(mapped(_pid, ITEMS, iter, address)) for _ in range(2)]
        with Client(address, set_as_default=False) as client:
            workers = set(client.run(os.getpid).values())
    assert pids[0] | pids[1] <= workers
    with cluster(None) as here:
        assert here is None


def _pid(item: int) -> int:
    return os.getpid()
