"""A round of federated learning with Flower on this machine, and what its server reads from it.

Starts a server (SuperLink) and a client (SuperNode), lets them do one round, stops both, and
attacks what the server kept. Nothing outside 127.0.0.1 is asked or told anything.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import client_app  # only to compare with: the attack does not use it

import gleak
from gleak.flower import kept_updates

HERE = Path(__file__).parent


def federated_round(folder: Path, limit: float = 300) -> None:
    """Run the Flower app of this folder with one client; what it keeps goes to `folder`/kept."""
    link, node = free_port(), free_port()
    tools = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", os.defpath)]),  # its helpers
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    connection = f'[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (folder / "config.toml").write_text(connection)
    address, port = ["--host", "127.0.0.1"], ["--port", str(link)]
    server = ["flower-superlink", "--insecure", *address, *port]
    server.append("--disable-runtime-dependency-installation")
    client = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"]
    client += [*address, "--port", str(node)]
    submit = ["flwr", "run", HERE, "here", "--stream", "--run-config", f'keep="{folder}/kept"']
    with (folder / "log").open("w") as log:

        def start(name, *arguments):
            # a group of its own, since it starts others
            return subprocess.Popen(
                [tools / name, *arguments],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        running = []
        try:
            running.append(start(*server))
            wait_for(link, running[0], limit)
            running += [start(*client), start(*submit)]
            running[-1].wait(limit)
        finally:
            for process in reversed(running):
                stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, limit: float) -> None:
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the Flower server did not start")


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    for kind, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, kind)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def attack(folder: Path, iterations: int) -> None:
    """Labels and images from what the server kept."""
    mine = gleak.load_batch("cifar10-samples", indices=[19])
    model = gleak.build_model("convnet", mine)
    (update,) = kept_updates(folder, model, input_shape=(3, 32, 32))
    print(update)
    counts = gleak.restore_labels(update, "zlg-bias")
    result = gleak.invert(update, counts, "gleak", iterations=iterations, progress=False)
    batch = client_app.own_images()
    scores = gleak.score(result.images, batch.images)
    print("labels right:", gleak.score_labels(counts, batch.label_counts)["instance"])
    print(scores.round(1).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1000)
    iterations = parser.parse_args().iterations
    with tempfile.TemporaryDirectory() as name:
        federated_round(Path(name))
        attack(Path(name, "kept"), iterations)
