"""Who has no registered key of its own, or no TLS, gets in nowhere: real nodes, one SuperLink."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedcl.keys import make_keys
from tests.flower.live import APP, Federation, federation
from tests.flower.parts import Part, free_port, until

pytestmark = [pytest.mark.flower, pytest.mark.apart]

KEY = "--auth-supernode-private-key"
# What a node without rights is told, or finds out by itself.
REFUSED = {
    "without a key": "All SuperNodes must be registered via the CLI",
    "with a key that is not registered": "Failed to activate SuperNode",
    "with the key of another node": "Failed to activate SuperNode",
    # Whether its call ends with the connection or is cut by a reset is a race of two processes.
    "without TLS": "Failed to initialize the connection to the SuperLink",
    "that trusts another CA": "CERTIFICATE_VERIFY_FAILED",
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation whose one rightful node is connected."""
    with federation(tmp_path_factory.mktemp("strangers") / "live", secure=True) as found:
        found.node("rightful", words=found.rightful())
        found.await_nodes(1)
        make_keys(found.keys, nodes=1)  # node 1, which nobody registers
        yield found


@pytest.fixture(scope="module")
def strangers(live: Federation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    """Nodes without rights, all at once; they try twice to connect."""
    others = tmp_path_factory.mktemp("others") / "keys"
    make_keys(others)
    rightful, unknown = (str(live.keys / f"node-{number}.key") for number in range(2))
    words = {
        "without a key": live.trusting(),
        "with a key that is not registered": (*live.trusting(), KEY, unknown),
        "with the key of another node": (*live.trusting(), KEY, rightful),
        "without TLS": ("--insecure",),
        "that trusts another CA": ("--root-certificates", str(others / "ca.pem"), KEY, rightful),
    }
    return {name: live.node(name, words=(*w, "--max-retries", "1")) for name, w in words.items()}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_node_without_rights_is_sent_away(
    live: Federation, strangers: dict[str, Part], name: str
) -> None:
    assert strangers[name].wait(300) == 1
    said = strangers[name].text()
    assert REFUSED[name] in said and "Exit Code: 305" in said and "SuperNode ID" not in said
    with live.control() as control:
        (known,) = control.ListNodes(ListNodesRequest()).nodes_info
    assert known.status == "online" and live.nodes["rightful"].alive


def test_the_port_says_not_a_word_of_http_without_tls(live: Federation) -> None:
    call = b"POST /v1/fleet/register-node HTTP/1.1\r\nHost: it\r\nContent-Length: 0\r\n\r\n"
    heard = b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as plain:
        try:
            plain.sendall(call)
            while got := plain.recv(4096):
                heard += got
        except (ConnectionResetError, BrokenPipeError):
            pass  # cut off: no answer either
    assert b"HTTP" not in heard
    with httpx.Client(verify=ssl.create_default_context(cafile=live.keys / "ca.pem")) as trusting:
        answer = trusting.post(f"https://127.0.0.1:{live.port}/v1/fleet/register-node")
    assert answer.status_code in range(400, 500)  # the same call is heard with TLS, and refused


# --- What a program of one's own might send. ---

CALLS: dict[str, Callable[[Node, bytes], object]] = {
    "RegisterNode": lambda node, key: RegisterNodeFleetRequest(public_key=key),
    "ActivateNode": lambda node, key: ActivateNodeRequest(public_key=key, heartbeat_interval=30),
    "DeactivateNode": lambda node, key: DeactivateNodeRequest(node_id=node.node_id),
    "UnregisterNode": lambda node, key: UnregisterNodeFleetRequest(node_id=node.node_id),
    "SendNodeHeartbeat": lambda node, key: SendNodeHeartbeatRequest(node=node),
    "PullMessages": lambda node, key: PullMessagesRequest(node=node),
    "PushMessages": lambda node, key: PushMessagesRequest(node=node),
    "GetRun": lambda node, key: GetRunRequest(node=node, run_id=1),
    "GetFab": lambda node, key: GetFabRequest(node=node, run_id=1),
    "PushObject": lambda node, key: PushObjectRequest(node=node, run_id=1),
    "PullObject": lambda node, key: PullObjectRequest(node=node, run_id=1),
    "ConfirmMessageReceived": lambda node, key: ConfirmMessageReceivedRequest(node=node, run_id=1),
}


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a node's key."""
    key = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


@pytest.mark.parametrize("signed", ["not at all", "by a stranger", "by another registered node"])
def test_no_call_in_the_name_of_a_node_is_answered_without_its_signature(
    live: Federation, signed: str
) -> None:
    rightful = private_key(live.keys / "node-0.key").public_key()
    with live.control() as control:
        (known,) = (
            node
            for node in control.ListNodes(ListNodesRequest()).nodes_info
            if node.public_key == public_key_to_bytes(rightful)
        )
    node, key = Node(node_id=known.node_id), known.public_key
    signers = []
    if signed == "by a stranger":  # who claims to be the rightful one
        signers.append(NodeAuthHttpInterceptor(private_key(live.keys / "node-1.key"), rightful))
    elif signed == "by another registered node":
        other = private_key(Path(live.rightful()[-1]))
        signers.append(NodeAuthHttpInterceptor(other, other.public_key()))
    with FleetHttpClient.from_server_address(
        f"127.0.0.1:{live.port}",
        insecure=False,
        root_certificates=(live.keys / "ca.pem").read_bytes(),
        interceptors=signers,
    ) as client:
        for name, request in CALLS.items():
            with pytest.raises(httpx.HTTPStatusError) as refused:
                getattr(client, name)(request(node, key))
            assert refused.value.response.status_code == 401, name


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_the_door_of_deploy_lets_nodes_in_and_nothing_else(
    live: Federation, tmp_path: Path
) -> None:
    port = free_port()
    text = (APP / "nginx.conf").read_text(encoding="utf-8")
    for old, new in (
        ("listen 9443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("127.0.0.1:8000", f"127.0.0.1:{live.port}"),
        ("/etc/fedcl", str(live.keys)),
    ):
        assert old in text
        text = text.replace(old, new)
    places = "".join(
        f"{name}_temp_path {tmp_path}; "
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; error_log stderr; pid {tmp_path / 'pid'}; events {{}}\n"
        f"http {{ access_log off; {places}\n{text} }}\n"
    )
    nginx = [shutil.which("nginx") or "", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    checked = subprocess.run([*nginx, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    door = live.part("door", nginx[0], *nginx[1:])
    live.nodes["door"] = door.start()
    context = ssl.create_default_context(cafile=live.keys / "ca.pem")
    with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}") as trusting:

        def answers() -> bool:
            try:
                return trusting.post("/v1/fleet/pull-messages").status_code != 502
            except httpx.TransportError:
                return False

        until(answers, "nginx answers", 60)
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/health", "/"):
            assert trusting.post(path).status_code == 403, path
    outside = live.part(
        "outside", "flower-supernode", "--superlink", f"127.0.0.1:{port}", *live.rightful(),
        "--port", str(free_port()),
    )  # fmt: skip
    live.nodes["outside"] = outside.start()
    until(lambda: "SuperNode ID:" in outside.text(), "a node comes in by the door", 180)
