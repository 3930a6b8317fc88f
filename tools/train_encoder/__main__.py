"""The command line: ``accelerate launch [options of it] tools/train_encoder STAGE [options]``."""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python puts this folder there, whose names are common ones

from train_encoder.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
