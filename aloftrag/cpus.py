"""How many threads to compute with."""

import os


def usable_cpus() -> int:
    """The CPUs that this process may use: in a Slurm step or a container with a set of its own, fewer than the machine has."""
    return len(os.sched_getaffinity(0))
