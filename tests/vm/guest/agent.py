"""Runs in the guest: carries out shell commands that come in over a virtio port, as JSON lines."""

import base64
import json
import subprocess
from pathlib import Path

NAME = "barfs.agent"


def open_port():
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == NAME:
            return Path("/dev", entry.name).open("r+b", buffering=0)
    raise SystemExit("no virtio port named " + NAME)


def carry_out(request):
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", request["command"]],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=request["timeout"],
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return {"status": None, "stdout": late.stdout or b"", "stderr": late.stderr or b""}
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode  # as a shell has it
    return {"status": status, "stdout": done.stdout, "stderr": done.stderr}


def main():
    port = open_port()
    pending = b""
    while True:
        line, found, pending = pending.partition(b"\n")
        if not found:
            pending = line + port.read(65536)
            continue
        answer = carry_out(json.loads(line))
        for stream in ("stdout", "stderr"):
            answer[stream] = base64.b64encode(answer[stream]).decode()
        data = memoryview(json.dumps(answer).encode() + b"\n")
        while data:
            data = data[port.write(data) :]


main()
