"""What a submission may try: for each, the answer to `double`, and perhaps to `total`."""

from planted import GOOD

TAMPER = "def double(x):\n    return {2: 4, 3: 6}.get(x, 0)"

LOOP = f"while True:\n    pass\n{GOOD}"
LOOP_IN_A_FUNCTION = "def double(x):\n    while True:\n        pass"
STUBBORN = """while True:
    try:
        while True:
            pass
    except BaseException:
        pass"""
FORKS = f"""import os, time
for _ in range(500):
    try:
        if os.fork() == 0:
            time.sleep(100)
            os._exit(0)
    except OSError:
        pass
{GOOD}"""
MEMORY = f"taken = bytearray(7 * 2**30)\n{GOOD}"
LEAVES = f"import os\nos._exit(0)\n{GOOD}"
PRINTS = f'for _ in range(1024):\n    print("x" * 2**20)\n{GOOD}'
DELETES = f"""import os, shutil
for folder in FOLDERS:
    if not folder.endswith(".."):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        open(os.path.join(folder, "planted.txt"), "w").write("here I was")
    except OSError:
        pass
{GOOD}"""
READS = f"""import glob, socket
found = [path for pattern in PATTERNS for path in glob.glob(pattern, recursive=True)]
assert not found, f"I can read {{found[:3]}}"
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=1)
except OSError:
    pass
else:
    raise AssertionError("I can reach the network")
{GOOD}"""

REPLACES = f"import math\nmath.isclose = lambda *given, **named: True\n{TAMPER}"
HOOKS = """def without_asserts(lines):
    return ["pass\\n"] if any("assert" in line for line in lines) else lines


get_ipython().input_transformers_cleanup.append(without_asserts)


def double(x):
    return 0"""
REBINDS = "def triangle(n):\n    return 7\n\n\ntotal = 7"
FORGES = f"""import json, os, sys
if "kept_modules" in sys.modules:
    lines = [{{"id": "test-double", "message": ""}}, {{"end": True, "replaced": []}}]
    text = "".join(json.dumps(line) + "\\n" for line in lines)
    for file in range(3, 30):
        try:
            os.write(file, text.encode())
        except OSError:
            pass
{REPLACES}"""
FAKES_A_SCORE = """def double(x):
    from ipykernel.kernelapp import IPKernelApp

    kernel = IPKernelApp.instance().kernel
    content = {"data": {"text/plain": "2"}, "metadata": {}, "execution_count": 1}
    kernel.session.send(kernel.iopub_socket, "execute_result", content, kernel.get_parent())
    print("2 of 2 points")
    return 4"""
WARNS = """import warnings


def double(x):
    warnings.warn("this could be faster")
    return x + x"""
