"""Loads this folder as `attnlib.kernels` where attnlib is not installed.

A bare GPU machine has torch and triton and nothing else. Importing attnlib would ask for its other
dependencies, so the scripts of this folder register the folder alone under the same name.
"""

import importlib.util
import sys
from pathlib import Path


def load_folder() -> None:
    """Make `from attnlib.kernels import ...` work from this folder, without attnlib."""
    folder = Path(__file__).parent
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != folder.resolve()]
    spec = importlib.util.spec_from_file_location(
        "attnlib.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["attnlib.kernels"] = module
    spec.loader.exec_module(module)
