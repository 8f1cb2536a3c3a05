#!/usr/bin/env python
"""python tools/submit.py --config yaml/train_8gpu.yaml: the same as ``hpcrl submit``."""

import sys

from hpcrl.__main__ import main

sys.argv.insert(1, "submit")
main()
