"""`python -m gpu_worker`."""

from functools import partial

import quire.service
from gpu_worker.server import WorkerServicer
from gpu_worker.settings import WorkerSettings

if __name__ == "__main__":
    build = partial(WorkerServicer, on_loaded=quire.service.freeze_heap)
    quire.service.run("gpu_worker", WorkerSettings, build)
