import subprocess
import sys

from jaxformer.training import memory
from jaxformer.training.memory import Settling, keep_freed_memory, return_freed_memory

# Frees 200 MB and reads from the kernel how much the process still holds.
PROGRAM = """
import re, sys
import numpy as np
if {keep}:
    from jaxformer.training.memory import keep_freed_memory
    assert keep_freed_memory()
def held():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
before = held()
block = np.ones(200 * 2**20, np.uint8)
after = np.ones(2**16, np.uint8)  # above it, so that the block is a hole
del block
if {returned}:
    from jaxformer.training.memory import return_freed_memory
    assert return_freed_memory()
print(held() - before)
"""


def held_after_free(keep, returned=False):
    program = PROGRAM.format(keep=keep, returned=returned)
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    return int(output.stdout)


def test_freed_memory_stays_in_the_process():
    if sys.platform.startswith("linux"):
        assert held_after_free(True) > 150
        assert held_after_free(False) < 50
        assert held_after_free(True, returned=True) < 50
    else:
        assert not keep_freed_memory()
        assert not return_freed_memory()


def test_a_run_returns_memory_while_it_settles(monkeypatch):
    """After each of the first three steps, then every 20 seconds of steps that take 7."""
    returned, now = [], [0.0]
    monkeypatch.setattr(memory, "return_freed_memory", lambda: returned.append(now[0]))
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    settle = Settling(steps=3, seconds=20.0)
    for step in range(10):
        now[0] = 7.0 * step
        settle()
    assert returned == [0.0, 7.0, 14.0, 35.0, 56.0]
