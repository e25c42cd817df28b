"""The demo model's modules live under `tools/`, outside the installed packages."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    """The bundled checkpoint."""
    return ROOT / "models" / "demo"


@pytest.fixture(scope="session")
def demo_tokenizer(demo_directory: Path) -> Tokenizer:
    """The tokenizer of the bundled checkpoint."""
    return Tokenizer.from_file(str(demo_directory / "tokenizer.json"))
