from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import edge_agent.pipeline


def test_every_module_imports_without_the_extras() -> None:
    modules = sorted(path.stem for path in Path(edge_agent.pipeline.__path__[0]).glob("*.py"))
    code = """
import importlib, sys
for extra in ("PIL", "pyarrow", "pandas", "torch"):
    sys.modules[extra] = None
for module in sys.argv[1:]:
    importlib.import_module("edge_agent.pipeline." + module.replace("__init__", "pipeline"))
"""
    subprocess.run([sys.executable, "-c", code, *modules], check=True, timeout=60)
