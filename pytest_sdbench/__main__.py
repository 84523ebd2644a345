"""Run ``python -m pytest_sdbench``."""

import sys

from pytest_sdbench.commands.main import main

sys.exit(main())
