"""What devices spare each other: nodes that would be made more than once if each device were built alone."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.plan import Plan


@dataclass(frozen=True)
class Sharing:
    """devices: how many were chosen. unshared: the nodes that there would be if each of them were built alone. saved:
    those of them that need not be made.
    """

    devices: int
    unshared: int
    saved: int

    @property
    def words(self) -> list[str]:
        """It in one sentence, or none where nothing is shared."""
        if self.devices < 2 or self.saved < 1:
            return []
        return [f"{self.devices} devices share: {self.unshared} nodes without sharing, {self.saved} saved"]


def sharing_of(plan: Plan) -> Sharing:
    """Count what the plan's devices share. A node without devices is made once for each device that needs it."""
    users: dict[str, set[str]] = {}
    for name, node in reversed(list(plan.nodes.items())):
        after: set[str] = set().union(*(users[each.name] for each in plan.needed_by(name)))
        users[name] = set(node.devices) if node.stage.per or not after else after
    unshared = sum(len(each) or 1 for each in users.values())
    return Sharing(len(plan.devices), unshared, unshared - len(plan.nodes))
