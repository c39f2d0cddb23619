"""Log a model: ``python jobs/log_model.py prompt|chat|pipeline FOLDER …``.

The same options as ``phi3-batch log``.
"""

import sys

from phi3_batch.cli import main

if __name__ == "__main__":
    sys.exit(main(["log", *sys.argv[1:]]))
