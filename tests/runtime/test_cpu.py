from __future__ import annotations

import subprocess
import sys

from edge_agent.runtime.cpu import FLAGS, cpu_flags, parse_cpuinfo

X86 = """processor\t: 0
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni
processor\t: 1
flags\t\t: fpu sse4_2 avx avx2 avx512f
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes asimdhp asimddp
"""


def test_only_flags_that_every_core_has_count() -> None:
    assert parse_cpuinfo(X86) == ("sse4_2", "avx", "avx2", "avx512f")


def test_arm_features_are_read_too() -> None:
    assert parse_cpuinfo(ARM) == ("asimd", "asimdhp", "asimddp")


def test_an_unknown_format_has_no_flags() -> None:
    assert parse_cpuinfo("") == parse_cpuinfo("model name: x") == ()


def test_flags_of_this_machine_are_known_ones() -> None:
    assert set(cpu_flags()) <= set(FLAGS)


def test_importing_the_rooms_imports_no_runtime() -> None:
    code = (
        "import sys, edge_agent.pipeline, edge_agent.measure, edge_agent.drift, edge_agent.serve;"
        "print(*[m for m in ('onnxruntime', 'openvino', 'onnx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
