"""`python -m scheduler_svc`."""

from quire.service import run
from scheduler_svc.server import SchedulerServicer
from scheduler_svc.settings import SchedulerSettings

if __name__ == "__main__":
    run("scheduler_svc", SchedulerSettings, SchedulerServicer)
