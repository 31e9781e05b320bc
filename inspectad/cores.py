"""How many processors there are for us, and what they can do."""

import os
import re
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")


def cores() -> int:
    """Processors that this process may use: fewer than the machine has, in a container or under ``taskset``."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lacks_vnni(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this is an x86 processor without VNNI, the instructions that int8 models are for.

    False where it cannot be told: other systems than Linux, other architectures.
    """
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags[1].split())
