"""Loads the repository root as the package ``t2v_turbo``, as ComfyUI does, whatever the checkout's folder is called."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

if "t2v_turbo" not in sys.modules:
    init = ROOT / "__init__.py"
    spec = importlib.util.spec_from_file_location("t2v_turbo", init, submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["t2v_turbo"] = module
    spec.loader.exec_module(module)
