"""Many nodes in one process, which speak Flower's Fleet API and answer with fedcl's client half.

A node is what `flower-supernode` is towards a SuperLink: its connection, its heartbeats and the
order of its calls are Flower's own. Only the process that a SuperNode starts for each message is
left out: questions are answered here, by a few threads for all nodes.
"""

from __future__ import annotations

import heapq
import json
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lab import environment
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supernode.fleet_http_connection import http_request_response

PAUSE = 3.0  # seconds until a node without a message looks again, as flower-supernode does
NAME = "fedcl-nodes"  # under which the process appears
_THREADS = 8  # that serve all nodes


@dataclass
class Node:
    """A node of a federation.

    Attributes:
        client: Which client it is.
        connection: Flower's calls, as `flower-supernode` has them.
        answer: Returns what a client answers to a message.
    """

    client: int
    connection: tuple[Any, ...]
    answer: Callable[[int, Message], Message]

    def turn(self) -> Message | None:
        """Takes a message, if there is one, answers it, and returns it."""
        _, receive, send, _, _, pull, push, confirm = self.connection
        received = receive()
        if received is None:
            return None
        begun = time.monotonic()
        head, tree = received
        number, run = head.metadata.message_id, head.metadata.run_id
        pieces = [part.object_id for part in iterate_object_tree(tree)]
        contents = pull_objects(pieces, lambda piece: pull(run, piece))
        confirm(run, number)
        message = inflate_object_from_contents(number, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = number
        reply = self.answer(self.client, message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, parts = get_object_tree(reply), get_all_nested_objects(reply)
            wanted, session = send(reply, tree, time.monotonic() - begun)
            push_objects(
                parts,
                lambda piece, content: push(run, session, piece, content),
                object_ids_to_push=wanted,
            )
        return message


@dataclass
class Crowd:
    """Nodes that are served by a few threads, each when it is due.

    Attributes:
        nodes: All of them.
        pause: Seconds until a node without a message looks again.
        done: How often each message was answered, by client, kind and id.
        errors: What went wrong.
    """

    nodes: list[Node]
    pause: float = PAUSE
    done: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def serve(self, over: threading.Event) -> None:
        """Lets nodes look for messages until it is over."""
        begun = time.monotonic()
        gap = self.pause / len(self.nodes)  # they have not all started at once
        due = [(begun + gap * place, place) for place in range(len(self.nodes))]
        lock = threading.Lock()

        def work() -> None:
            while not over.is_set():
                with lock:
                    if due and due[0][0] <= time.monotonic():
                        _, place = heapq.heappop(due)
                    else:
                        place = -1
                if place < 0:
                    time.sleep(0.02)
                    continue
                pause = 0.0 if self._turn(self.nodes[place]) else self.pause
                with lock:
                    heapq.heappush(due, (time.monotonic() + pause, place))

        with ThreadPoolExecutor(_THREADS) as pool:
            for worker in [pool.submit(work) for _ in range(_THREADS)]:
                worker.result()

    def _turn(self, node: Node) -> bool:
        try:
            message = node.turn()
        except Exception:  # told in the end: no message may be lost, whatever the reason
            self.errors.append(f"client {node.client}: {traceback.format_exc()}")
            return False
        if message is None:
            return False
        told = message.metadata
        self.done[node.client, told.message_type, told.message_id] += 1
        return True


@contextmanager
def connected(
    address: str, clients: int, answer: Callable[[int, Message], Message]
) -> Iterator[list[Node]]:
    """Registers nodes at a SuperLink, and takes them away again.

    Args:
        address: Of the SuperLink.
        clients: Number of nodes: client 0 and so on.
        answer: Returns what a client answers to a message.
    """
    with ExitStack() as opened:
        yield [
            Node(client, opened.enter_context(http_request_response(address, True)), answer)
            for client in range(clients)
        ]


def client_half(config: Path, folder: Path) -> Callable[[int, Message], Message]:
    """Returns how fedcl's ClientApp answers for each client; all have the same copy of a config.

    Args:
        config: A TOML file.
        folder: For what clients keep.
    """
    import fedcl
    from fedcl.flower.node.client_app import make_app
    from fedcl.flower.node.home import Home, Own

    own = Own(fedcl.load_config(config, {"engine": {"name": "serial"}}), folder / "memories")
    assert own.site  # built before many threads need it

    @contextmanager
    def find(context: Context, experiment: str) -> Iterator[Home]:
        client = int(context.node_config["client"])
        yield Home(client, lambda: own, token=f"{client:032x}")

    app = make_app(find)
    alone = threading.Lock()  # a device has its model for itself

    def answer(client: int, message: Message) -> Message:
        told = message.metadata
        words: UserConfig = {"client": client}
        with alone:
            return app(message, Context(told.run_id, told.dst_node_id, words, RecordDict(), {}))

    return answer


def main(words: Mapping[str, Any]) -> None:
    """Serves nodes until standard input ends; then tells in a line of JSON what they did."""
    Path("/proc/self/comm").write_text(NAME, encoding="ascii")
    answer = client_half(Path(words["config"]), Path(words["folder"]))
    over = threading.Event()
    with connected(words["address"], words["nodes"], answer) as nodes:
        crowd = Crowd(nodes)
        print("ready", flush=True)
        threading.Thread(target=_wait, args=[over], daemon=True).start()
        crowd.serve(over)
    answered: dict[str, Counter[int]] = {}
    for (client, kind, _), times in crowd.done.items():
        answered.setdefault(kind, Counter())[client] += times
    twice = sum(times > 1 for times in crowd.done.values())
    told = {"answered": answered, "twice": twice, "errors": crowd.errors}
    print(json.dumps(told), flush=True)


def _wait(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


@contextmanager
def crowd(address: str, nodes: int, config: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a process of nodes, waits until all are connected, and ends it.

    Args:
        address: Of the SuperLink.
        nodes: How many.
        config: Their copy of the config.
        folder: For what they keep and say.

    Raises:
        RuntimeError: They cannot connect.
    """
    words = {"address": address, "nodes": nodes, "config": str(config), "folder": str(folder)}
    with (folder / "nodes.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.crowd", json.dumps(words)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise RuntimeError(f"the nodes cannot connect: see {folder / 'nodes.log'}")
        yield process
    finally:
        process.kill()
        process.wait()


def dismissed(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Lets the nodes of a process leave, and returns what they say that they did.

    Returns:
        `answered`, the messages by kind and client; `twice`, those that were answered more than
        once; `errors`.
    """
    said, _ = process.communicate()
    told: dict[str, Any] = json.loads(said)
    return told


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
