#!/usr/bin/env python
"""python tools/train.py --config yaml/local.yaml: the same as ``hpcrl train``."""

import sys

from hpcrl.__main__ import main

sys.argv.insert(1, "train")
main()
