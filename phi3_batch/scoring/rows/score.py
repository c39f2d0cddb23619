"""Rows through a model: a DataFrame of rows to score in, one with what came of them out."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from phi3_batch.errors import RowErrorCode
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.answers import NO_ANSWERS, AnswerColumns
from phi3_batch.scoring.rows.columns import OURS, named
from phi3_batch.scoring.rows.requests import refuse
from phi3_batch.scoring.rows.time_limit import TimeLimit
from phi3_batch.scoring.rows.udf import ModelUdf
from phi3_batch.scoring.rows.work import EXISTING, REFUSAL, REQUEST_ID, Work
from phi3_batch.scoring.rows.worker import ALLOWED_S, ENGINE

# The number of a row among those of the same request. What is scored has it too: rows with the
# same one share an answer.
COPY = f"{OURS}copy"
_INPUTS, _RESULT = f"{OURS}inputs", f"{OURS}result"

# Requests that no model sees any more, and the error that their rows get.
Blamed = dict[str, tuple[RowErrorCode, str]]


@dataclass(frozen=True, slots=True)
class RowScorer:
    """Scores rows, or some of their requests.

    Attributes:
        work: what is asked for each row.
        udf: of the model.
        limit: how long rows may take.
        keep_response: whether the chat completion is kept as it is too.
        answers: columns of typed answers and probabilities that are wanted.
    """

    work: Work
    udf: ModelUdf
    limit: TimeLimit
    keep_response: bool = False
    answers: AnswerColumns = NO_ANSWERS

    def score(self, rows: DataFrame, tasks: int, blamed: Blamed) -> DataFrame:
        """What comes of rows.

        Args:
            rows: some of the work's, from :meth:`number_copies`.
            tasks: in how many the model is asked.
            blamed: requests that it is not asked.

        Returns:
            What is kept of the rows, what the model answered or why there is no answer, their
            request ids, COPY, and ENGINE: what has answered, as far as it tells.
        """
        if blamed:
            named_errors = [
                refuse(F.col(REQUEST_ID) == request, code, message)
                for request, (code, message) in blamed.items()
            ]
            rows = rows.withColumn(REFUSAL, F.coalesce(F.col(REFUSAL), *named_errors))
        answers = self.ask(rows, tasks).select(
            REQUEST_ID,
            COPY,
            F.struct(*self._answer_columns()).alias(_RESULT),
            F.col(_RESULT)[ENGINE].alias(ENGINE),
        )
        refusal = F.struct(*self._added(schema.columns_from_error(F.col(REFUSAL))))
        result = F.when(F.col(REFUSAL).isNull(), F.col(_RESULT)).otherwise(refusal)
        keys = [REQUEST_ID, COPY]
        columns = [*map(named, self.work.kept), *map(F.col, keys)]
        joined = rows.join(answers, on=keys, how="left").select(
            *columns, ENGINE, result.alias(_RESULT)
        )
        # one with neither is left out, which the check at the end finds
        scored = joined.where(F.col(_RESULT).isNotNull()).select(*columns, ENGINE, f"{_RESULT}.*")
        return scored.withColumnRenamed(REQUEST_ID, schema.REQUEST_ID)

    def number_copies(self, rows: DataFrame) -> DataFrame:
        """Some of the work's rows, with COPY.

        Greedy rows of one request are one copy: they are asked once. Sampled ones are counted, in
        an order that is the same each time and on from those that the output has, and the model
        gives each copy a text of its own.
        """
        if self.work.is_greedy:  # counting would shuffle all rows
            return rows.withColumn(COPY, F.lit(0))
        order = Window.partitionBy(REQUEST_ID).orderBy(
            identity.row_digest(rows.schema, self.work.kept)
        )
        number = F.col(EXISTING) + F.row_number().over(order) - 1
        return rows.withColumn(COPY, F.when(self.work.greedy, F.lit(0)).otherwise(number))

    def ask(self, rows: DataFrame, tasks: int) -> DataFrame:
        """The distinct requests among rows that have COPY, with the model's result for each."""
        requests, allowed_s = self.work.requests, self.work.allowed_s * self.limit.factor
        inputs = requests.struct(allowed_s.alias(ALLOWED_S)).alias(_INPUTS)
        # Rows that no model should see are split off before it. A condition around the UDF would
        # not do: Spark runs a Python UDF for every row, whatever stands around it.
        # The model counts copies within its batch: before the first new one, it is asked those
        # again that the output has.
        copy = F.col(COPY)
        first = F.when(copy == F.col(EXISTING), F.lit(0)).otherwise(copy)
        copies = F.explode(F.sequence(first, copy))
        sound = rows.where(F.col(REFUSAL).isNull())
        # copies first: beside or below an explode, Spark 4.0 loses a struct, or its fields' names
        asked = sound.withColumn(COPY, copies).select(REQUEST_ID, COPY, inputs)
        once = asked.dropDuplicates([REQUEST_ID, COPY])
        # copies come to the model in one task and in their order, on any number of processors
        placed = once.repartition(tasks, REQUEST_ID).sortWithinPartitions(REQUEST_ID, COPY)
        return placed.withColumn(_RESULT, self.udf.ask(F.col(_INPUTS))).drop(_INPUTS)

    def try_out(self, rows: DataFrame) -> int:
        """Score rows in one task, equal ones once; returns the tokens generated."""
        some = rows.dropDuplicates([REQUEST_ID]).withColumn(COPY, F.lit(0))
        answers = self.ask(some, tasks=1).select(F.struct(*self._answer_columns()).alias(_RESULT))
        total = answers.agg(F.sum(F.col(_RESULT)["completion_tokens"])).head()
        return int(total[0] or 0) if total else 0

    def _answer_columns(self) -> list[Column]:
        return self._added(self.udf.read(F.col(_RESULT).dropFields(ENGINE)))

    def _added(self, columns: Mapping[str, Column]) -> list[Column]:
        # a response that is not kept must not meet an input column of that name
        added = schema.output_columns(
            keep_response=self.keep_response, answers=self.answers
        ).fieldNames()
        columns = {**columns, **self.answers.columns(columns)}
        return [columns[name].alias(name) for name in added if name in columns]
