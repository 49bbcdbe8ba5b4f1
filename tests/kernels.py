"""Notebook kernels that start at once: forked from a process that has imported what chapters do.

Importing torch and the rest takes longer than many a chapter. `Kernels(folder)` starts that process
and makes Jupyter take its kernels, here and in the processes started from here. gleak is not among
what is imported, so that every kernel reads it as it is.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

# What chapters import, most of it by way of gleak.
IMPORTED = ["docutils.nodes", "ipykernel.kernelapp", "IPython.display", "jedi", "matplotlib.pyplot"]
IMPORTED += ["matplotlib_inline.backend_inline", "myst_nb.ext.glue", "pandas", "safetensors.torch"]
IMPORTED += ["scipy.optimize", "scipy.stats", "sklearn.datasets", "torch.func"]
IMPORTED += ["torch.utils.flop_counter", "torchmetrics.functional.image", "torchvision", "yaml"]


class Kernels:
    """A running server of kernels, which ends with this process."""

    def __init__(self, folder: Path):
        address = folder / "address"
        spec = folder / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [sys.executable, "-S", __file__, "ask", str(address), "-f", "{connection_file}"]
        spec.write_text(
            json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
        )
        found = [str(folder), *filter(None, [os.environ.get("JUPYTER_PATH")])]
        os.environ["JUPYTER_PATH"] = os.pathsep.join(found)
        command = [sys.executable, __file__, "serve", str(address)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE)
        while not address.exists():
            if self.process.poll() is not None:
                raise RuntimeError("the server of kernels did not start")
            select.select([], [], [], 0.1)

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(address: str) -> None:
    """Fork a kernel for each connection, until the process that started this one ends."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as kernels set it
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)  # who asks now waits for the imports
    for name in IMPORTED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become_kernel(connection)
            os._exit(0)
        connection.close()


def become_kernel(connection: socket.socket) -> None:
    """The child: a kernel with the directory, environment and arguments of who asked."""
    with connection.makefile("rw") as lines:
        asked = json.loads(lines.readline())
        lines.write(f"{os.getpid()}\n")
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.environ.pop("JPY_PARENT_PID", None)  # the connection tells when the parent is gone
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, path), *(entry for entry in sys.path[1:] if entry not in path)]
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)

    def watch() -> None:
        connection.recv(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher.py", *asked["arguments"]]
    IPKernelApp.launch_instance()


def ask(address: str, arguments: list[str]) -> None:
    """What Jupyter starts and takes for the kernel: there as long as the kernel is."""
    parent = os.getppid()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    with connection.makefile("rw") as lines:
        about = {"cwd": str(Path.cwd()), "environ": dict(os.environ), "arguments": arguments}
        lines.write(json.dumps(about) + "\n")
        lines.flush()
        kernel = int(lines.readline())
    signal.signal(signal.SIGINT, lambda number, frame: os.kill(kernel, signal.SIGINT))
    while os.getppid() == parent:
        if select.select([connection], [], [], 1)[0]:
            return


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[2], sys.argv[3:])
