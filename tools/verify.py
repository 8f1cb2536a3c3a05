#!/usr/bin/env python
"""python tools/verify.py --config yaml/local.yaml: the same as ``hpcrl verify``."""

import sys

from hpcrl.cli import main

sys.argv.insert(1, "verify")
main()
