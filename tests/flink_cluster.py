"""A standalone Flink cluster on free ports: a job manager, two task managers, a Beam worker pool for their Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from spoor.services.flink import flink_command
from tests.conftest import free_port, wait_until

JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_MEMORY = {  # each component, as Flink's start script would work them out
    "network.min": "64m",
    "network.max": "64m",
    "framework.heap.size": "128m",
    "framework.off-heap.size": "128m",
    "task.heap.size": "256m",
    "task.off-heap.size": "64m",
    "managed.size": "128m",
    "jvm-metaspace.size": "256m",
    "jvm-overhead.min": "192m",
    "jvm-overhead.max": "192m",
}


@dataclass(frozen=True)
class FlinkCluster:
    rest: str  # host:port of the job manager
    worker_pool: str  # host:port
    task_managers: list[subprocess.Popen[bytes]]
    pool_log: Path

    @property
    def python_workers(self) -> int:
        """How many Python processes the pool has started."""
        return self.pool_log.read_text().count("Starting worker with command")

    def kill_a_task_manager(self) -> None:
        self.task_managers[0].send_signal(signal.SIGKILL)
        self.task_managers[0].wait()


@contextmanager
def flink_cluster(folder: Path) -> Iterator[FlinkCluster]:
    rest_port, rpc_port, pool_port = free_port(), free_port(), free_port()
    (folder / "config.yaml").write_text(
        f"""
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc_port}
jobmanager.memory.process.size: 1024m
jobmanager.execution.failover-strategy: region
rest.address: 127.0.0.1
rest.port: {rest_port}
taskmanager.host: 127.0.0.1
taskmanager.numberOfTaskSlots: 2
taskmanager.load-balance.mode: SLOTS
heartbeat.interval: 1000
heartbeat.timeout: 6000
io.tmp.dirs: {folder}
"""
    )
    memory = [f"-Dtaskmanager.memory.{name}={size}" for name, size in _MEMORY.items()]
    managers = [
        [TASK_MANAGER, f"--configDir={folder}", "-Dtaskmanager.cpu.cores=1.0", f"-Dtaskmanager.resource-id=tm-{n}"]
        for n in range(2)
    ]
    with ExitStack() as stack:

        def start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
            environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            with open(folder / f"{name}.log", "wb") as log:
                process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True
                )
            stack.callback(_end, process)
            return process

        start("job-manager", flink_command(JOB_MANAGER, [f"--configDir={folder}"], heap_mb=512))
        pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}"]
        start("pool", pool)
        task_managers = [
            start(f"task-manager-{n}", flink_command(main, [*arguments, *memory], heap_mb=384))
            for n, (main, *arguments) in enumerate(managers)
        ]
        wait_until(lambda: _slots(rest_port) == 4, "both task managers are there")
        yield FlinkCluster(f"127.0.0.1:{rest_port}", f"127.0.0.1:{pool_port}", task_managers, folder / "pool.log")


def _slots(rest_port: int) -> int:
    import requests

    try:
        return int(requests.get(f"http://127.0.0.1:{rest_port}/overview", timeout=5).json()["slots-total"])
    except (requests.RequestException, KeyError, ValueError):
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """With what it has started: a pool's Python processes are in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
