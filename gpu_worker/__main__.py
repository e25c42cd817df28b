"""`python -m gpu_worker`."""

from gpu_worker.server import WorkerServicer
from gpu_worker.settings import WorkerSettings
from quire.service import run

if __name__ == "__main__":
    run("gpu_worker", WorkerSettings, WorkerServicer)
