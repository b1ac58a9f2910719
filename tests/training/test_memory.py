import subprocess
import sys

from jaxformer.training.memory import keep_freed_memory

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
del block
print(held() - before)
"""


def held_after_free(keep):
    output = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    return int(output.stdout)


def test_freed_memory_stays_in_the_process():
    if sys.platform.startswith("linux"):
        assert held_after_free(True) > 150
        assert held_after_free(False) < 50
    else:
        assert not keep_freed_memory()
