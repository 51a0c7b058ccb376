"""How many CPUs this process may use, which in a container is fewer than the host has."""

from __future__ import annotations

import math
import os
from pathlib import Path

UNLIMITED = float(2**30)
"""Stands for no quota: more CPUs than any machine has, and still an integer when rounded up."""


def available_cpus(cgroup_file: Path = Path("/proc/self/cgroup"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the smaller of the CPU affinity and the cgroup's quota (version 1 or 2, rounded up), at least 1.

    Args:
        cgroup_file: Where Linux lists the cgroups of this process; absent on other systems.
        cgroup_root: Where the cgroup file systems are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(_quota(cgroup_file, cgroup_root))))


def _quota(cgroup_file: Path, root: Path) -> float:
    """Returns the CPUs that the tightest cgroup above this process grants; UNLIMITED where none does."""
    try:
        lines = cgroup_file.read_text().splitlines()
    except OSError:
        return UNLIMITED
    quotas = [UNLIMITED]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            quotas += [_v2_quota(folder) for folder in _with_parents(root, group)]
        elif "cpu" in controllers.split(","):
            quotas += [_v1_quota(folder) for folder in _with_parents(root / "cpu", group)]
    return min(quotas)


def _with_parents(root: Path, group: str) -> list[Path]:
    # Inside a container the group's name may be the host's: its folder is then absent and only the root counts.
    folder = root / group.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _v2_quota(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return UNLIMITED if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return UNLIMITED


def _v1_quota(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return UNLIMITED if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return UNLIMITED
