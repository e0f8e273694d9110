import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoo.environment import (
    Environment,
    capture,
    container_limits,
    git_commit,
    has_bf16_units,
)


def test_a_fingerprint_survives_json() -> None:
    environment = capture()

    assert Environment.from_json(json.loads(json.dumps(environment.to_json()))) == environment


def test_later_fields_are_dropped() -> None:
    environment = capture()

    assert Environment.from_json(environment.to_json() | {"later": 1}) == environment


def test_the_key_differs_where_a_field_does() -> None:
    environment = capture()

    assert len(environment.key) == 12
    assert environment.key == capture().key
    assert environment.key != replace(environment, torch="0.0").key
    assert environment.key != replace(environment, threads=environment.threads + 1).key


def test_it_tells_of_this_machine() -> None:
    environment = capture()

    assert environment.torch == str(torch.__version__)
    assert environment.threads == torch.get_num_threads()
    assert environment.cores >= 1
    assert environment.memory_gib > 0
    assert (environment.device, environment.compute_capability) == ("cpu", None)


def test_bf16_units() -> None:
    assert has_bf16_units(("avx2", "avx512_bf16"))
    assert has_bf16_units(("amx_bf16",))
    assert not has_bf16_units(("avx512f", "avx512_vnni"))


def test_what_older_records_do_not_know_leaves_their_key() -> None:
    absent = {"max_clock_mhz": None, "quota_cores": None, "memory_limit_gib": None}
    before = replace(capture(), **absent, keeps_memory=False, cores=8)
    value = before.to_json()
    for name in (*absent, "keeps_memory"):
        del value[name]

    assert Environment.from_json(value).key == before.key
    assert replace(before, max_clock_mhz=3000.0, memory_limit_gib=4.0).key == before.key
    assert replace(before, quota_cores=1.5).key != before.key  # it decides times
    assert replace(before, keeps_memory=True).key != before.key


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the control groups of a machine with eight cores."""
    monkeypatch.setattr("zoo.environment.usable_cores", lambda: 8)
    monkeypatch.setattr("zoo.environment.OWN_GROUPS", tmp_path / "own")
    return tmp_path / "groups"


def test_limits_of_a_container(groups: Path) -> None:
    assert container_limits(groups) == {"quota_cores": None, "memory_limit_gib": None}

    write(groups / "cpu.max", "150000 100000\n")
    write(groups / "memory.max", f"{2**30}\n")

    assert container_limits(groups) == {"quota_cores": 1.5, "memory_limit_gib": 1.0}


def test_limits_of_a_group_of_its_own(groups: Path, tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/box\n")
    write(groups / "box" / "cpu.max", "200000 100000\n")
    write(groups / "cpu.max", "100000 100000\n")

    assert container_limits(groups)["quota_cores"] == 2.0


def test_limits_of_the_first_version(groups: Path, tmp_path: Path) -> None:
    write(tmp_path / "own", "4:memory:/box\n3:cpu,cpuacct:/of/the/host\n")
    write(groups / "cpu" / "cpu.cfs_quota_us", "50000\n")
    write(groups / "cpu" / "cpu.cfs_period_us", "100000\n")
    write(groups / "memory" / "box" / "memory.limit_in_bytes", f"{2**29}\n")

    assert container_limits(groups) == {"quota_cores": 0.5, "memory_limit_gib": 0.5}


@pytest.mark.parametrize(
    ("quota", "memory"), [("max 100000", "max"), ("800000 100000", str(2**63)), ("", "")]
)
def test_no_limits(groups: Path, quota: str, memory: str) -> None:
    write(groups / "cpu.max", quota)
    write(groups / "memory.max", memory)

    assert container_limits(groups) == {"quota_cores": None, "memory_limit_gib": None}


def test_results_make_no_commit_dirty_but_code_does(tmp_path: Path) -> None:
    code, result = tmp_path / "zoo" / "code.py", tmp_path / "bench_results" / "README.md"
    for file in (code, result):
        file.parent.mkdir()
        file.write_text("as committed")
    assert git_commit(tmp_path) is None
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)
    clean = git_commit(tmp_path)

    result.write_text("measured again")
    measured = git_commit(tmp_path)
    code.write_text("changed")

    assert clean is not None
    assert len(clean) == 40
    assert measured == clean
    assert git_commit(tmp_path) == f"{clean}-dirty"
