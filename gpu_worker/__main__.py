"""`python -m gpu_worker`."""

import quire.service
from gpu_worker.server import WorkerServicer
from gpu_worker.settings import WorkerSettings

if __name__ == "__main__":
    quire.service.run("gpu_worker", WorkerSettings, WorkerServicer)
