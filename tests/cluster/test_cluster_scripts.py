"""The SLURM script and the JobSet, with stand-ins for the cluster's commands and the trainer."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def write_command(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands that note their calls; a job that runs."""
    folder = tmp_path / "bin"
    write_command(folder / "squeue", "echo RUNNING")
    write_command(folder / "scontrol", f'echo "scontrol $*" >> {tmp_path}/calls')
    return folder


def run_sbatch(tmp_path: Path) -> tuple[int, str]:
    """Run the SLURM script for the workdir `tmp_path`/run; its exit status and all calls."""
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "SLURM_CPUS_PER_TASK": "8",
    }
    command = ["bash", ROOT / "scripts/slurm.sbatch", "configs/tiny.py", tmp_path / "run", "--x=1"]
    status = subprocess.run(command, env=environment, timeout=30, capture_output=True).returncode
    calls = tmp_path / "calls"
    return status, calls.read_text() if calls.exists() else ""


def test_a_job_stopped_at_the_time_limit_is_queued_again(tmp_path, commands):
    write_command(commands / "srun", f'echo "srun $*" >> {tmp_path}/calls')
    status, calls = run_sbatch(tmp_path)
    assert status == 0 and calls.endswith("scontrol requeue 42\n")
    assert f"upsr_jax.main --config configs/tiny.py --workdir {tmp_path}/run --x=1" in calls


def test_a_finished_run_is_not_queued_again(tmp_path, commands):
    write_command(commands / "srun", f"{finish(tmp_path)}")
    assert run_sbatch(tmp_path) == (0, "")


def test_an_error_ends_the_job_with_its_status(tmp_path, commands):
    write_command(commands / "srun", "exit 9")
    assert run_sbatch(tmp_path) == (9, "")


def finish(tmp_path: Path) -> str:
    """The shell commands that leave the folder as a finished run does."""
    return f"mkdir -p {tmp_path}/run; touch {tmp_path}/run/finished"


def test_a_cancelled_job_stays_cancelled(tmp_path, commands):
    write_command(commands / "srun", "exit 0")
    write_command(commands / "squeue", "echo COMPLETING")
    assert run_sbatch(tmp_path) == (0, "")


def test_a_preemption_lets_the_script_see_the_end_of_the_trainer(tmp_path, commands):
    write_command(commands / "srun", f"kill -TERM $PPID; sleep 0.2; {finish(tmp_path)}")
    assert run_sbatch(tmp_path) == (0, "")


def read_jobset() -> tuple[dict, dict]:
    jobset = yaml.safe_load((ROOT / "scripts/jobset.yaml").read_text())
    (replicated_job,) = jobset["spec"]["replicatedJobs"]
    return jobset, replicated_job


def test_the_jobset_names_its_first_pod_and_the_number_of_hosts():
    jobset, replicated_job = read_jobset()
    job = replicated_job["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    name = f"{jobset['metadata']['name']}-{replicated_job['name']}-0-0"
    coordinator = f"--coordinator {name}.{jobset['spec']['network']['subdomain']}:"
    assert coordinator in container["args"][0]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    assert str(job["completions"]) == str(job["parallelism"]) == values["HOSTS"]


@pytest.mark.parametrize(
    ("trainer", "status"),
    [
        ("mkdir -p $WORKDIR; touch $WORKDIR/finished", 0),
        ("exit 0", 75),
        ("exit 9", 9),
        ("trap 'sleep 0.3; exit 0' TERM; touch $WORKDIR/up; while :; do sleep 0.05; done", 75),
    ],
    ids=["finished", "stopped", "failed", "evicted"],
)
def test_a_pod_succeeds_only_when_its_run_is_finished(tmp_path, trainer, status):
    (container,) = read_jobset()[1]["template"]["spec"]["template"]["spec"]["containers"]
    write_command(tmp_path / "bin" / "python", trainer)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "WORKDIR": str(tmp_path),
        "HOSTS": "2",
        "JOB_COMPLETION_INDEX": "0",
    }
    pod = subprocess.Popen([*container["command"], *container["args"]], env=environment)
    if "TERM" in trainer:
        deadline = time.monotonic() + 20
        while not (tmp_path / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pod.send_signal(signal.SIGTERM)
    assert pod.wait(20) == status
