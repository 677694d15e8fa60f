"""Many threads that read a file, or write to it: crowd_client.py PATH UID GROUP
CLIENTS LENGTH WRITE.

Says when they have begun. After SIGTERM it prints how often each outcome was, as JSON.
"""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections import Counter

path, *numbers = sys.argv[1:]
uid, group, clients, length, write = map(int, numbers)
outcomes = Counter()
begun = threading.Semaphore(0)
data = bytes(length)


def opened():
    while True:
        try:
            return os.open(path, os.O_RDWR)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError as error:
            print(error, flush=True)
            os._exit(1)


def client():
    fd = opened()
    begun.release()
    while True:
        try:
            if write:
                os.pwrite(fd, data, 0)
            else:
                os.pread(fd, length, 0)
            outcome = "done"
        except OSError as error:
            outcome = errno.errorcode[error.errno]
        outcomes[outcome] += 1
        if outcome != "done" and ended.wait(0.05):
            return


ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
if uid:
    os.setgroups([group])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
threading.stack_size(256 << 10)
for _ in range(clients):
    threading.Thread(target=client, daemon=True).start()
for _ in range(clients):
    begun.acquire()
print("begun", flush=True)
ended.wait()
print(json.dumps(dict(outcomes)), flush=True)
os._exit(0)
