"""Memory that is freed is there for the next tensor of its size."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource
import sys

import torch

from ep2ploc_core.allocation import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for count in range(40):
    if count == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [torch.ones(1_250_000) for _ in range(20)]  # 5 MB each, all freed at once
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told to keep memory")
def test_tensors_made_anew_cost_no_page_faults() -> None:
    faults = {}
    for how in ("keep", "as it is"):
        done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 0.05 * faults["as it is"], faults
