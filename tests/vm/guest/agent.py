"""Runs in the guest: carries out shell commands that come in over a virtio port, as JSON lines."""

import base64
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path

NAME = "barfs.agent"

# One shell forks for each command. To start a shell for each takes several times as long here.
COMMAND = Path("/run/agent-command")
LOOP = f'while read -r out err; do (. {COMMAND}) </dev/null >"$out" 2>"$err"; echo $?; done'


def open_port():
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == NAME:
            return Path("/dev", entry.name).open("r+b", buffering=0)
    raise SystemExit("no virtio port named " + NAME)


class Shell:
    """Carries out commands, one after the other."""

    def __init__(self):
        self._start()

    def _start(self):
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def carry_out(self, request):
        """The exit status of a command and what it printed; None for one that took too long.

        As with any pipe, it has not ended while something that it left in the background could
        still print.
        """
        COMMAND.write_text(request["command"])
        pipes = {name: os.pipe() for name in ("stdout", "stderr")}
        reads = {name: os.fdopen(read, "rb", 0) for name, (read, _) in pipes.items()}
        writes = [os.fdopen(write, "wb", 0) for _, write in pipes.values()]
        # The shell opens them itself, by names that they have here.
        names = " ".join(f"/proc/{os.getpid()}/fd/{write.fileno()}" for write in writes)
        self._process.stdin.write(names.encode() + b"\n")
        try:
            return self._collect(reads, writes, time.monotonic() + request["timeout"])
        finally:
            for end in (*reads.values(), *writes):
                end.close()

    def _collect(self, reads, writes, deadline):
        """What a command that has begun prints, and how it ends."""
        answer = {"status": None, "stdout": b"", "stderr": b""}
        with selectors.DefaultSelector() as waiting:
            for name, file in {"status": self._process.stdout, **reads}.items():
                waiting.register(file, selectors.EVENT_READ, name)
            while waiting.get_map():
                ready = waiting.select(max(0, deadline - time.monotonic()))
                if not ready:
                    os.killpg(self._process.pid, signal.SIGKILL)
                    self._process.wait()
                    self._start()
                    return {**answer, "status": None}
                for key, _ in ready:
                    data = key.fileobj.read(65536)
                    if key.data == "status":
                        answer["status"] = int(data)
                        for write in writes:
                            write.close()
                    else:
                        answer[key.data] += data
                    if not data or key.data == "status":
                        waiting.unregister(key.fileobj)
        return answer


def main():
    port, shell = open_port(), Shell()
    pending = b""
    while True:
        line, found, pending = pending.partition(b"\n")
        if not found:
            pending = line + port.read(65536)
            continue
        answer = shell.carry_out(json.loads(line))
        for stream in ("stdout", "stderr"):
            answer[stream] = base64.b64encode(answer[stream]).decode()
        data = memoryview(json.dumps(answer).encode() + b"\n")
        while data:
            data = data[port.write(data) :]


main()
