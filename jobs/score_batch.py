"""Score a table: ``spark-submit jobs/score_batch.py --model … --input … --output …``.

The same options as ``phi3-batch score``.
"""

import sys

from phi3_batch.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
