"""What the GPU path promises, shown on the device: random traffic, prefills that agree, scores, an even timeline."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `demo_model`, which draws and judges the demo model's questions.
sys.path.insert(0, str(ROOT / "tools"))
