"""`launch/tpu_vm.sh keep` with a made-up gcloud: what it starts, begins again, leaves, ends and deletes."""
import pytest

from tests.test_launch_pod import KEEP, SLICE, Cluster

KEPT = ("keep", "--config=c", "--workdir=/w")


def deeds(calls):
    """The calls that change something, in words."""
    names = {"create": "create", "delete": "delete", "tpu_host.sh setup": "setup", "tpu_host.sh run": "run", "rm -f glipv2_jax/.stopped": "allow"}
    lines = [" ".join(call) for call in calls]
    return [name for line in lines for text, name in names.items()
            if (text in line if " " in text else f"queued-resources {text} " in line)]


def test_keep_makes_a_slice_again_after_every_preemption(tmp_path):
    cluster = Cluster(
        tmp_path, gcloud=KEEP,
        states="MISSING\nWAITING_FOR_RESOURCES\nACTIVE\nACTIVE\nSUSPENDED\nMISSING\n"
               "ACTIVE\nACTIVE\nACTIVE\nMISSING\nACTIVE\n",
        machines="READY\nREADY\nREADY\nREADY\nPREEMPTED\nREADY\n", hosts="none\nrunning\nnone\nrunning\nfinished\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE, DELETE="1")
    assert code == 0, error
    assert deeds(calls) == ["create", "setup", "run", "delete", "create", "setup", "run", "delete", "create", "delete"]
    assert "pod: PREEMPTED" in error and "pod: READY, finished" in error


@pytest.mark.parametrize("hosts, does, code, says", [
    ("running none\nrunning\nfinished running\nfinished\n", ["setup", "run"], 0, "still costs money"),
    ("finished none\n", [], 0, "finished"), ("running\nfailed running\n", [], 1, "failed more often than RESTARTS allows"),
    # Of an earlier keep: once more.
    ("failed running\nrunning\nfinished\n", ["setup", "run"], 0, "finished"),
    ("stopped\nrunning\nfinished\n", ["allow", "setup", "run"], 0, "finished"),
    ("running stopped\nrunning\nfinished\n", ["allow", "setup", "run"], 0, "finished"),
    # Meanwhile: the end, whatever else has happened.
    ("running\nrunning stopped\n", [], 1, "somebody has stopped the run"),
    ("running\nfailed stopped\n", [], 1, "somebody has stopped the run"),
    ("none\nstopped\n", ["setup", "run"], 1, "somebody has stopped the run")])
def test_keep_looks_at_every_host(tmp_path, hosts, does, code, says):
    cluster = Cluster(tmp_path, gcloud=KEEP, states="ACTIVE\n", machines="READY\n", hosts=hosts)
    found, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE)
    assert found == code and says in error and deeds(calls) == does


def test_keep_deletes_what_has_failed_for_good_after_its_last_lines(tmp_path):
    cluster = Cluster(tmp_path, gcloud=KEEP, states="ACTIVE\n", machines="READY\n", hosts="running\nfailed\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE, DELETE="1")
    lines = [" ".join(call) for call in calls]
    assert code == 1 and "its last lines stand above" in error and "tpu_host.sh last" in lines[-2] and deeds(calls) == ["delete"]


@pytest.mark.parametrize("states, does", [("ACTIVE\nMISSING\n", []), ("MISSING\nPROVISIONING\nMISSING\n", ["create"]),
                                          ("WAITING_FOR_RESOURCES\nMISSING\n", [])])
def test_keep_leaves_what_somebody_has_deleted(tmp_path, states, does):
    cluster = Cluster(tmp_path, gcloud=KEEP, states=states, machines="READY\n", hosts="running\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE)
    assert code == 1 and "somebody has deleted the slice" in error and deeds(calls) == does


def test_keep_tries_again_to_delete_and_says_what_still_costs(tmp_path):
    cluster = Cluster(tmp_path, gcloud='[[ $* != *"queued-resources delete"* ]] || exit 1\n' + KEEP, states="ACTIVE\n", machines="READY\n",
                      hosts="finished\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE, DELETE="1")
    assert code == 1 and deeds(calls) == ["delete"] * 3 and "could not be deleted" in error and "still costs money" in error


def test_keep_sets_up_a_machine_that_has_nothing_yet(tmp_path):
    """What is asked of a host is asked in an empty folder, where no script of ours can answer."""
    host = tmp_path / "host"
    host.mkdir()
    ask = f"""for word in "$@"; do
  if [[ $word == --command=*state ]]; then (cd {host} && bash -c "${{word#--command=}}"); exit; fi
  if [[ $word == --command=*tpu_host.sh*run* ]]; then mkdir -p {host}/glipv2_jax/launch && echo echo state: finished >{host}/glipv2_jax/launch/tpu_host.sh; fi
done
"""
    cluster = Cluster(tmp_path, gcloud=ask + KEEP, states="ACTIVE\n", machines="READY\n", hosts="\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE)
    assert code == 0 and deeds(calls) == ["setup", "run"] and "pod: READY, none" in error and "pod: READY, finished" in error


def test_setups_cut_off_by_preemption_are_not_failures_in_a_row(tmp_path):
    cluster = Cluster(tmp_path, gcloud='[[ $* != *"tpu_host.sh setup"* ]] || exit 255\n' + KEEP, machines="READY\n", hosts="none\n",
                      states=6 * "ACTIVE\n" + "SUSPENDED\nMISSING\n" + "ACTIVE\n")
    code, _, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE)
    assert code == 1 and deeds(calls) == ["setup"] * 6 + ["delete", "create"] + ["setup"] * 10


def test_keep_gives_up_on_a_slice_that_cannot_be_set_up(tmp_path):
    cluster = Cluster(tmp_path, gcloud='[[ $* != *"tpu_host.sh setup"* ]] || exit 255\n' + KEEP, states="ACTIVE\n", machines="READY\n",
                      hosts="none\n")
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE, DELETE="1")
    assert code == 1 and deeds(calls) == ["setup"] * 10 + ["delete"] and "could not set up or start, 10 times in a row" in error


@pytest.mark.parametrize("switch, asked", [("0", False), ("", False), ("1", True)])
def test_switches_are_one_or_zero(tmp_path, switch, asked):
    cluster = Cluster(tmp_path, gcloud=KEEP, states="ACTIVE\n", machines="READY\n", hosts="finished\n")
    assert ("--spot" in cluster.run("launch/tpu_vm.sh", "create", **SLICE, SPOT=switch)[2][0]) == asked
    assert ("delete" in deeds(cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE, DELETE=switch)[2])) == asked
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE, DELETE="no")
    assert code == 2 and "found DELETE=no, expected 1 or 0" in error and not calls


def test_a_dry_run_inside_of_a_job_installs_nothing(tmp_path):
    cluster = Cluster(tmp_path)
    code, _, calls = cluster.run("launch/slurm.sh", "--dry-run", "--config=c", "--workdir=/w", SLURM_JOB_ID="7")
    assert code == 0 and not calls and "srun" in cluster.output and "install.sh" in cluster.output


@pytest.mark.parametrize("hosts, does", [("stopped\nstopped\nrunning\nfinished\n", ["allow", "setup", "allow", "setup", "run"]),
                                         ("none\nnone\nfinished\n", ["setup", "setup", "run"])])
def test_keep_outlives_a_failing_setup_and_a_silent_service(tmp_path, hosts, does):
    once = """once() { [[ ! -f $ANSWERS/$1 ]] && touch "$ANSWERS/$1"; }
if [[ $* == *"tpu_host.sh setup"* ]] && once failed; then exit 255; fi
if [[ $* == *"queued-resources describe"* ]] && once silent; then echo "503" >&2; exit 1; fi
"""
    cluster = Cluster(tmp_path, gcloud=once + KEEP, states="ACTIVE\n", machines="READY\n",
                      hosts=hosts)
    code, error, calls = cluster.run("launch/tpu_vm.sh", *KEPT, **SLICE)
    assert code == 0 and deeds(calls) == does and "no answer: 503" in error
