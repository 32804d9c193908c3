"""A process for launcher tests. ``python -m a_child`` does what its job specifies, with only the standard library."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

from zmqrl.process import LOG_LEVEL, Messages, read_job, say


def main() -> None:
    job = read_job(signal.Signals(job_signal()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if job.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started = []
    if job.get("with_children"):
        # One child in the session of this process, and one child in a session of its own.
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        started = [subprocess.Popen(sleep, start_new_session=apart).pid for apart in (False, True)]
    if job.get("bare_child"):
        started = [subprocess.Popen(["setsid", "sleep", "600"], env={"PATH": os.environ["PATH"]}).pid]
    if "background" in job:
        # A server in the background: the process that started it has ended.
        command = [*job["background"], "setsid", "sleep", "600"]
        shell = ["sh", "-c", '"$@" < /dev/null > /dev/null 2>&1 & echo $!', "sh", *command]
        started.append(int(subprocess.run(shell, stdout=subprocess.PIPE, check=True, timeout=60).stdout))
    if job.get("forks"):
        if not (pid := os.fork()):
            os.setsid()
            time.sleep(600)
        started = [pid]
    facts = {"up": True, "pid": os.getpid(), "started": started, "size": len(job.get("padding", ""))}
    facts |= {"log_level": os.environ.get(LOG_LEVEL), "random": random.random(), "argv": sys.argv}
    facts |= {"variables": {name: os.environ.get(name) for name in job.get("variables", ())}}
    say(facts | {"is_forked": gc.get_freeze_count() > 0})  # only the fork server freezes objects
    for line in job.get("print", []):
        sys.stdout.write(line)
    sys.stdout.flush()
    for line in job.get("log", []):
        sys.stderr.write(line)
    sys.stderr.flush()
    if "exit" in job:
        sys.exit(job["exit"])
    if job.get("deaf"):
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    if "hangs" in job:
        HANGS[job["hangs"]]()
    if job.get("echo"):
        told = Messages()
        while True:
            say({"echo": told.get()})
    time.sleep(600)


def wait_for_ever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def compute_for_ever() -> None:
    while True:
        sorted([list(range(10)) for _ in range(10)])


def count_for_ever() -> None:
    sum(range(10**15))  # C code that does not check for signals


HANGS = {"on a lock": wait_for_ever, "in Python": compute_for_ever, "in C": count_for_ever}


def job_signal() -> int:
    return int(os.environ.get("A_CHILD_DIES_WITH", int(signal.SIGTERM)))


if __name__ == "__main__":
    main()
