"""A stand-in for the kubelets of all nodes: it starts nothing, and says of every pod that is placed that it runs."""

import threading
from collections import Counter
from itertools import count
from typing import Any

from tests.kubernetes.control_plane import ControlPlane, is_ready

_POLL_S = 0.1


class Kubelets:
    """What the nodes would say of their pods: each runs, is ready while `are_ready`, and goes when it is told to.

    A new pod is ready one look later than it runs, so that a gap in a rollout is one that is seen: `fewest` is the
    smallest number of ready pods of each workload at any look since it was last cleared.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self.are_ready = True
        self.fewest: dict[str, int] = {}
        self._plane = plane
        self._addresses = count(1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Kubelets":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            pods = self._plane.api.get("/api/v1/pods").json()["items"]
            ready = Counter(pod["metadata"]["labels"]["app"] for pod in pods if is_ready(pod))
            for app in {pod["metadata"]["labels"]["app"] for pod in pods}:
                self.fewest[app] = min(ready[app], self.fewest.get(app, ready[app]))
            for pod in pods:
                self._tend(pod)

    def _tend(self, pod: Any) -> None:
        metadata, status = pod["metadata"], pod["status"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            self._plane.api.request("DELETE", path, json={"gracePeriodSeconds": 0})
        elif "nodeName" in pod["spec"] and not is_ready(pod):
            runs = status["phase"] == "Running"
            if not runs or self.are_ready:
                number = next(self._addresses)
                address = status.get("podIP") or f"10.1.{number // 256}.{number % 256}"
                said = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
                ready = {"type": "Ready", "status": str(runs)}
                self._plane.patch(f"{path}/status", {"status": said | {"conditions": [ready]}})
