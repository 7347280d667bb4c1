"""The workers of a run on several machines, as the environment variable `TF_CONFIG` names them."""

import dataclasses
import json
import os
import re

from mat.cli.errors import UserError
from mat.cli.text import single_line

EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'
_ADDRESS = re.compile(r"\S+:\d+")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers that share a run; each is a process."""

    addresses: tuple[str, ...]  # HOST:PORT of each; the first is the chief, which writes
    index: int  # of this process
    n_chiefs: int = 0  # tasks that are named chief, not worker, and come first

    def number(self, kind: str, index: int) -> int:
        """The number of a task among all workers."""
        return index + (self.n_chiefs if kind == "worker" else 0)

    @property
    def name(self) -> str:
        """This process in words."""
        return f"worker {self.index} of {len(self.addresses)} ({self.addresses[self.index]})"


def read_cluster() -> Cluster | None:
    """The workers named in `TF_CONFIG`, where there are at least two; None where it is not set or names one alone.

    Raises:
        UserError: it is not of that form, this process is none of the workers, or a task is neither chief nor worker.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        cluster, task = (json.loads(text).get(key, {}) for key in ("cluster", "task"))
        addresses = {kind: list(cluster[kind]) for kind in ("chief", "worker") if cluster.get(kind)}
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        named = [address for kind in addresses for address in addresses[kind]]
        well_formed = all(isinstance(address, str) and _ADDRESS.fullmatch(address) for address in named)
    except (ValueError, AttributeError, TypeError):
        well_formed = False
    if not well_formed:
        raise UserError(f"TF_CONFIG must be of the form {EXAMPLE}. Received: {single_line(text)}")
    if others := set(cluster) - {"chief", "worker"} | {kind} - {"chief", "worker"}:
        received = ", ".join(sorted(map(str, others)))
        raise UserError(f"TF_CONFIG: all tasks must be chief or worker, and all of them train. Received: {received}")
    if len(named) < 2:
        return None
    if not 0 <= index < len(addresses.get(kind, [])):
        raise UserError(f"TF_CONFIG: task {kind} {index} is none of those in cluster: {single_line(json.dumps(cluster))}")
    if len(set(named)) < len(named):
        raise UserError(f"TF_CONFIG: each worker needs an address of its own. Received: {', '.join(named)}")
    cluster = Cluster(tuple(named), 0, len(addresses.get("chief", [])))
    return dataclasses.replace(cluster, index=cluster.number(kind, index))
