"""Log a model: ``python jobs/log_model.py prompt MODEL_DIR …``.

The same options as ``phi3-batch log``.
"""

import sys

from phi3_batch.cli import main

if __name__ == "__main__":
    sys.exit(main(["log", *sys.argv[1:]]))
