"""`python -m yolo_adapruner` is the command line."""

import sys

from yolo_adapruner.cli import main

sys.exit(main())
