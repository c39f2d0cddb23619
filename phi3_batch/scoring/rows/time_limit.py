"""How long the rows of a batch may take before their worker is taken for one that hangs.

By what the rows may take, not by what others took: the fastest chunk may have answers of one word
where another has 128 of 4,000 tokens.
"""

from threading import Lock

from pyspark.sql import Column
from pyspark.sql import functions as F

from phi3_batch.scoring.rows.model import ModelKind, ScoringModel
from phi3_batch.scoring.rows.requests import RowRequests
from phi3_batch.scoring.rows.worker import HANG_SECONDS

# Phi-3-mini writes 9 tokens a second on two cores, one row at a time: this is 18 times as long.
_SECONDS_PER_TOKEN = 2.0
_SECONDS_PER_CHARACTER = 0.1  # of what is read, where each may be a token
# Beyond these a model ends by itself, or refuses the row.
_MOST_TOKENS = 131_072
_MOST_CHOICES = 128

_HANG_FACTOR = 10


def allowed_seconds(model: ScoringModel, requests: RowRequests) -> Column:
    """What each row may take for itself: its prompt, and all tokens of all its choices."""

    def parameter(name: str, most: int) -> Column:
        if name in requests.inputs:  # a chat's own
            return F.least(F.greatest(requests.inputs[name], F.lit(1)), F.lit(most))
        value = model.params.get(name, model.defaults[name])
        # a model that is not ours may mean by it what it likes
        sound = isinstance(value, int) and 0 < value < most
        return F.lit(value if sound else most)

    tokens = parameter("max_tokens", _MOST_TOKENS) * parameter("n", _MOST_CHOICES)
    return tokens * _SECONDS_PER_TOKEN + requests.characters() * _SECONDS_PER_CHARACTER


class TimeLimit:
    """Keeps what rows may take by what chunks have taken of it; for several threads.

    Our own models end a step that hangs by themselves, so their limit only grows, on a machine
    that is slow. For a model that is not ours it is ten times what chunks took, in proportion to
    what is in them.

    Args:
        model: what the workers run.

    Attributes:
        factor: of :func:`allowed_seconds`.
    """

    def __init__(self, model: ScoringModel) -> None:
        self._is_ours = model.kind not in (ModelKind.TEXT, ModelKind.ONE_BY_ONE)
        self._slowness = 0.0
        self._lock = Lock()
        self.factor = 1.0

    def learn(self, seconds: float, slots: int, allowed_s: float) -> None:
        """Take note of a chunk that went well at once.

        Args:
            seconds: that it took.
            slots: tasks of it that ran at the same time.
            allowed_s: what its rows may take together.
        """
        if not allowed_s:
            return
        # what it takes to begin is allowed for already; with others' models this is all we know
        worked_s = max(seconds - HANG_SECONDS, 0.0) if self._is_ours else seconds
        with self._lock:
            self._slowness = max(self._slowness, worked_s * slots / allowed_s)
            self.factor = max(_HANG_FACTOR * self._slowness, 1.0 if self._is_ours else 0.0)
