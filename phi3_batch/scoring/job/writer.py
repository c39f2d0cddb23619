"""Writing a run into its output: its first commit, and one for each chunk."""

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.scoring.delta.commits import Committer
from phi3_batch.scoring.delta.ledger import Ledger
from phi3_batch.scoring.job.chunks import ChunkScorer, ScoredChunk
from phi3_batch.scoring.job.cut import Chunk
from phi3_batch.scoring.job.plan import ScoringPlan
from phi3_batch.scoring.job.tasks import count_side_by_side
from phi3_batch.scoring.rows.columns import named


class RunWriter:
    """Scores and writes a run; one for the whole run, used by several threads.

    Args:
        spark: the session.
        plan: of the run.
        run_id: of MLflow's run, written beside each row.

    Attributes:
        side_by_side: how many chunks fill the slots, once the first commit is made.

    Raises:
        EnvironmentProblemError: there is no room for MLflow's copies of the model.
    """

    def __init__(self, spark: SparkSession, plan: ScoringPlan, run_id: str) -> None:
        self._plan = plan
        self._run_id = run_id
        self._scorer = ChunkScorer(spark, plan, plan.work, run_id) if plan.work else None
        self._committer = Committer(
            spark, plan.options.output, plan.run, plan.state.seen, plan.state.start
        )
        largest = max((chunk.requests for chunk in plan.to_do), default=0)
        begins_with_one = plan.state.begin is not None and not plan.begins_empty
        self.side_by_side = count_side_by_side(
            plan.slots, largest, len(plan.to_do) - begins_with_one
        )

    @property
    def seen(self) -> Ledger:
        """The output's history, with all that this run has committed."""
        return self._committer.seen

    def begin(self, chunk: Chunk | None) -> ScoredChunk | None:
        """Make the run's first commit, with its first chunk if there is any."""
        plan = self._plan
        mode = plan.state.begin
        assert mode is not None  # who calls has looked
        record = plan.record(self._run_id)
        if chunk is None:
            self._committer.begin(self._no_rows(), record, mode, None, plan.partitions)
            return None

        def commit(rows: DataFrame) -> bool:
            begun = self._committer.begin(rows, record, mode, chunk.number, plan.partitions)
            return begun or self._add(rows, chunk)  # another driver's first may have been another

        return self._with_scorer().score(chunk, commit, slots=plan.slots)

    def write(self, chunk: Chunk) -> ScoredChunk:
        """Score a chunk and commit it."""
        slots = -(-self._plan.slots // self.side_by_side)
        return self._with_scorer().score(chunk, lambda rows: self._add(rows, chunk), slots)

    def bring_up_to_date(self) -> None:
        """Write what takes no model: kept columns that alone have changed, and deletions."""
        plan, ids = self._plan, self._plan.run.ids
        if plan.to_update is not None:
            self._committer.update_kept(plan.to_update, ids, plan.kept)
        if plan.to_delete:
            self._committer.delete_others(plan.job.input.rows.select(*map(named, ids)), ids)

    def _add(self, rows: DataFrame, chunk: Chunk) -> bool:
        """Commit a chunk of a run that has begun; False where another driver has."""
        if self._plan.run.ids:
            return self._committer.merge(rows, self._plan.run.ids, chunk.number)
        return self._committer.append(rows, chunk.number)

    def _no_rows(self) -> DataFrame:
        added = [
            F.lit(None).cast(column.dataType).alias(column.name) for column in self._plan.job.added
        ]
        return self._plan.pinned.limit(0).select(*map(named, self._plan.kept), *added)

    def _with_scorer(self) -> ChunkScorer:
        assert self._scorer is not None  # there is a chunk, and so there is work
        return self._scorer
