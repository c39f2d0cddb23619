"""Runs at the start of every Python worker of the tests' Spark: lets our log be read.

Workers write nothing by themselves. With WORKER_LOG in the environment, what phi3_batch logs goes
to that file, each line behind the worker's process id.
"""

import logging
import os

if "WORKER_LOG" in os.environ:
    handler = logging.FileHandler(os.environ["WORKER_LOG"], delay=True)
    handler.setFormatter(logging.Formatter("%(process)d %(message)s"))
    logger = logging.getLogger("phi3_batch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
