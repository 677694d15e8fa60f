"""Break a device while a file of it is open, and say what became of the file.

usage: silence.py PATH OFFSET WIDTH COMMAND

Prints JSON: what a read gave before COMMAND, and what a read, a write and another open gave after
it; data as hex, or the name of the error.
"""

import errno
import json
import os
import subprocess
import sys


def attempt(call, *arguments):
    try:
        result = call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return result.hex() if isinstance(result, bytes) else result


def main():
    path, offset, width, command = sys.argv[1], int(sys.argv[2], 16), int(sys.argv[3]), sys.argv[4]
    fd = os.open(path, os.O_RDWR)
    found = {"before": attempt(os.pread, fd, width, offset)}
    subprocess.run(["bash", "-c", command], check=True)
    found["read"] = attempt(os.pread, fd, width, offset)
    found["write"] = attempt(os.pwrite, fd, bytes(width), offset)
    os.close(fd)
    found["open"] = attempt(os.open, path, os.O_RDONLY)
    print(json.dumps(found))


main()
