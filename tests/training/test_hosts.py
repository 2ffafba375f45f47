"""How a process learns of the others: Cloud TPU's environment and metadata, as `jax.distributed` reads them."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from jax._src.clusters import cloud_tpu_cluster

from edit_rl_jax.training import processes


@pytest.fixture
def machine(monkeypatch):
    """A TPU VM that shows the devices of `count` processes; `asked`: what `jax.distributed.initialize` was told."""
    found = SimpleNamespace(asked=[], count=1)
    stands = SimpleNamespace(
        config=SimpleNamespace(jax_platforms=None),
        distributed=SimpleNamespace(initialize=lambda *args, **how: found.asked.append(args)),
        process_count=lambda: found.count,
    )
    found.jax = stands
    monkeypatch.setattr(processes, "jax", stands)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def metadata(monkeypatch):
    """{attribute: text} that a VM's metadata server answers, 404 for others."""
    told: dict[str, str] = {}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            found = told.get(self.path.rsplit("/", 1)[1])
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setattr("time.sleep", lambda s: None)
        yield told
        server.shutdown()


ALONE = (None, None, None)
VM = {"agent-worker-number": "0", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'"}


def test_vms_of_a_queued_resource_are_joined_by_their_metadata(machine, metadata):
    """They have no TPU_WORKER_HOSTNAMES: that is GKE's."""
    metadata |= VM | {"worker-network-endpoints": "a:0:10.0.0.1,b:1:10.0.0.2,c:2:10.0.0.3,d:3:10.0.0.4"}
    assert processes.hosts() == 4
    processes.start(*ALONE)
    assert machine.asked == [()]


def test_slices_of_one_host_each_are_joined(machine, metadata):
    metadata |= VM | {"worker-network-endpoints": "a", "tpu-env": "MEGASCALE_NUM_SLICES: '2'"}
    processes.start(*ALONE)
    assert machine.asked == [()]


@pytest.mark.parametrize(("named", "joins"), [("a,b", [()]), ("localhost", [])])
def test_gke_names_hosts_in_the_environment(machine, metadata, monkeypatch, named, joins):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", named)
    processes.start(*ALONE)
    assert machine.asked == joins


def test_one_host_stays_alone(machine, metadata, monkeypatch):
    metadata |= VM | {"worker-network-endpoints": "a"}
    processes.start(*ALONE)
    metadata.clear()
    processes.start(*ALONE)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")  # nobody answers
    processes.start(*ALONE)
    machine.jax.config.jax_platforms = "cpu"  # a job on the host's processors
    metadata |= VM | {"worker-network-endpoints": "a,b"}
    processes.start(*ALONE)
    assert machine.asked == []


def test_flags_come_first(machine):
    processes.start("10.0.0.1:8476", 2, 1)
    assert machine.asked == [("10.0.0.1:8476", 2, 1)]


def test_several_hosts_that_nothing_names_are_refused(machine, metadata):
    machine.count = 4
    with pytest.raises(processes.PeerError, match="--coordinator"):
        processes.start(*ALONE)
