"""``python -m nni_fairdarts`` is ``nni-fairdarts``."""

import sys

from nni_fairdarts.cli import main

sys.exit(main())
