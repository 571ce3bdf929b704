"""The same plan on a Ray cluster."""

from __future__ import annotations

from pipelines.config import RayConfig
from pipelines.execute import Needs, Outcome, Report, Task
from pipelines.project import Project


class RayExecutor:
    """See Executor."""

    one_machine = False

    def __init__(self, project: Project, config: RayConfig) -> None:
        raise NotImplementedError

    def room(self, needs: Needs) -> bool:
        raise NotImplementedError

    def submit(self, task: Task) -> None:
        raise NotImplementedError

    def wait(self) -> list[Outcome | Report]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
