from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixsiam_hub.cpus import available_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("9000000 100000", 8), ("garbage", 8)],
)
def test_quota_of_cgroup_version_2_limits(tmp_path: Path, quota: str, cpus: int) -> None:
    _write(tmp_path / "cgroup", "0::/app\n")
    _write(tmp_path / "fs/app/cpu.max", quota)
    assert available_cpus(tmp_path / "cgroup", tmp_path / "fs") == cpus


def test_tightest_parent_counts(tmp_path: Path) -> None:
    _write(tmp_path / "cgroup", "0::/pod/app\n")
    _write(tmp_path / "fs/pod/app/cpu.max", "max 100000")
    _write(tmp_path / "fs/pod/cpu.max", "200000 100000")
    assert available_cpus(tmp_path / "cgroup", tmp_path / "fs") == 2


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3)])
def test_quota_of_cgroup_version_1_limits_at_the_root_of_a_container(tmp_path: Path, quota: str, cpus: int) -> None:
    _write(tmp_path / "cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    _write(tmp_path / "fs/cpu/cpu.cfs_quota_us", quota)
    _write(tmp_path / "fs/cpu/cpu.cfs_period_us", "100000")
    assert available_cpus(tmp_path / "cgroup", tmp_path / "fs") == cpus


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "absent", tmp_path) == 8
