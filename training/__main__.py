"""`python -m training`, also under `accelerate launch -m training` and `torchrun -m training`."""

import sys

from training.cli import main

if __name__ == "__main__":
    sys.exit(main())
