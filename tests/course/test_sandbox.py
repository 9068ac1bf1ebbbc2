"""What a process in the sandbox can see, reach and take. Needs bubblewrap."""

import json
import socket
import subprocess
import sys
import time

import pytest
import sandbox
from watched import Watched

OBSTACLE = sandbox.obstacle()
needs_isolation = pytest.mark.skipif(
    OBSTACLE is not None, reason=f"submissions cannot be isolated on this machine: {OBSTACLE}"
)


def in_sandbox(code, **limits):
    command = [str(sandbox.interpreter()), "-c", code]
    return subprocess.run(
        sandbox.isolated(command, sandbox.Limits(**limits)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(code, **limits):
    """What the code prints as JSON."""
    ran = in_sandbox(code, **limits)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@needs_isolation
def test_only_the_system_the_environment_and_the_package_are_there():
    seen = told(
        "import json, os\n"
        f"root = os.listdir({str(sandbox.ROOT)!r}), os.listdir({str(sandbox.ROOT / 'book')!r})\n"
        "others = [n for n in os.listdir('/proc') if n.isdigit()]\n"
        "print(json.dumps([*map(sorted, root), os.listdir('/etc'), len(others), dict(os.environ)]))"
    )
    assert seen[0] == [".venv", "attnlib", "book", "kernels"] and seen[1] == ["_tools"]
    assert seen[2] == ["ld.so.cache"] and seen[3] <= 3
    assert seen[4].keys() - sandbox.environment().keys() <= {"PWD", "LC_CTYPE"}


@needs_isolation
def test_nothing_can_be_written_but_a_bounded_scratch_folder():
    places = [sandbox.ROOT / "attnlib", sandbox.INSIDE, sandbox.BOOK_ENV, "/", "/dev", "/usr/lib"]
    code = f"""import json
written, size = [], 0
for place in {list(map(str, places))}:
    try:
        open(place + "/planted", "w").write("x")
        written.append(place)
    except OSError:
        pass
for folder in ("/scratch", "/tmp", "/dev/shm"):
    for number in range(1000):
        try:
            with open(f"{{folder}}/{{number}}", "wb") as file:
                size += file.write(bytes(2**20))
        except OSError:
            break
print(json.dumps([written, size]))"""
    written, size = told(code, file_bytes=2**23)
    assert written == [] and 3 * 7 * 2**20 <= size <= 3 * 2**23


@needs_isolation
def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ran = in_sandbox(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    assert (ran.returncode and "OSError" in ran.stderr) or "refused" in ran.stderr


@needs_isolation
def test_processes_are_counted():
    code = """import json, os, time
started = 0
for _ in range(300):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        started += 1
    except OSError:
        break
print(json.dumps(started), flush=True)
os._exit(0)"""
    before = time.monotonic()
    assert 5 < told(code, processes=20) < 20
    assert time.monotonic() - before < 28  # the processes ended with the first


@needs_isolation
def test_memory_is_bounded_and_files_too():
    ran = in_sandbox("taken = []\nwhile True:\n    taken.append(bytes(2**24))", memory=2**28)
    assert "MemoryError" in ran.stderr
    ran = in_sandbox("open('/scratch/x', 'wb').write(bytes(2**24))", file_bytes=2**23)
    assert ran.returncode


@needs_isolation
def test_no_right_can_be_gained():
    facts = told(
        "import json, os\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "facts = dict(line.split(':\\t', 1) for line in lines)\n"
        "print(json.dumps([facts['CapEff'], facts['CapBnd'], facts['NoNewPrivs'], os.getuid()]))"
    )
    assert int(facts[0], 16) == 0 and facts[2] == "1"
    assert facts[3] != 0


def test_what_processes_take_together_is_bounded(tmp_path):
    code = "import os, time\nos.fork(); os.fork()\ntaken = bytearray(10**8)\ntime.sleep(30)"
    started = time.monotonic()
    with Watched(2 * 10**8, tmp_path, 2**20) as watched:
        subprocess.run([sys.executable, "-c", code], check=False)
    assert "memory" in watched.reason and time.monotonic() - started < 28


def test_what_is_written_into_the_shared_folder_is_bounded(tmp_path):
    code = f"open({str(tmp_path / 'x')!r}, 'wb').write(bytes(2**21))\nimport time\ntime.sleep(30)"
    started = time.monotonic()
    with Watched(2**32, tmp_path, 2**20) as watched:
        subprocess.run([sys.executable, "-c", code], check=False)
    assert "wrote too much" in watched.reason and time.monotonic() - started < 28


def test_a_quiet_process_is_left_alone(tmp_path):
    with Watched(2**32, tmp_path, 2**20) as watched:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.6)"], check=True)
    assert watched.reason == ""
