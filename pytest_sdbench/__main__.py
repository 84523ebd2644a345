"""Run ``python -m pytest_sdbench``."""

import sys

from pytest_sdbench.cli import main

sys.exit(main())
