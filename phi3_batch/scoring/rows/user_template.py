"""Messages made of plain columns: ``--system`` and ``--user-template "…{column}…"``."""

import string
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType, BinaryType, StructType

from phi3_batch.errors import InvalidParameterError, RowErrorCode, TableError
from phi3_batch.scoring.compat import SPATIAL_TYPES
from phi3_batch.scoring.rows import columns
from phi3_batch.scoring.rows.hidden import hide
from phi3_batch.scoring.rows.requests import refuse
from phi3_batch.scoring.rows.values import as_text

# characters of columns' names that a template cannot have between its braces
NOT_IN_BRACES = frozenset("{}[:!")


@dataclass(frozen=True, slots=True)
class UserTemplate:
    """A text with names of columns in braces; doubled braces stand for themselves.

    Attributes:
        text: as the user wrote it.
        parts: the literal texts and, each behind one of them, a column's name or None.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> "UserTemplate":
        """Read a template.

        Raises:
            InvalidParameterError: it has a brace too few, no column at all, or more than a
                column's name between braces.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise InvalidParameterError(
                f"the user template cannot be read ({error}); write {{{{ or }}}} for a brace"
            ) from error
        for _, name, form, conversion in parsed:
            if name == "" or form or conversion:
                raise InvalidParameterError(
                    "between the braces of the user template must be a column's name and nothing"
                    " else"
                )
        template = cls(text, tuple((literal, name) for literal, name, _, _ in parsed))
        if not template.columns:
            raise InvalidParameterError(
                "the user template names no column in braces: every row would ask the same"
            )
        return template

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def check(self, table: StructType, where: str) -> None:
        """Raise a TableError unless the table has every column, each with a plain value."""
        for name in self.columns:
            field = columns.find_field(table, name)
            if field is None:
                raise TableError(
                    f"the user template names {name!r}, but the columns of {where} are"
                    f" {', '.join(table.fieldNames())}"
                )
            kind = field.dataType
            if not isinstance(kind, AtomicType) or isinstance(kind, (BinaryType, *SPATIAL_TYPES)):
                raise TableError(
                    f"the user template names {name!r}, which is {kind.simpleString()}:"
                    " it takes text, numbers, dates and the like"
                )

    def messages(self, table: StructType, system: str | None) -> tuple[Column, Column]:
        """A column of messages, and the refusal of rows in which a named column is null.

        Args:
            table: that was checked.
            system: the system message, if there is to be one.
        """
        values = {name: columns.typed(table, name) for name in self.columns}
        texts = [
            part
            for literal, name in self.parts
            for part in (hide(literal), F.lit("") if name is None else as_text(*values[name]))
        ]
        turns = [_message("user", F.concat(*texts))]
        if system is not None:
            turns.insert(0, _message("system", hide(system)))
        refusals = [
            refuse(column.isNull(), RowErrorCode.NULL_PROMPT, f"column {name} is null")
            for name, (column, _) in values.items()
        ]
        return F.array(*turns), F.coalesce(*refusals)


def _message(role: str, content: Column) -> Column:
    return F.struct(F.lit(role).alias("role"), content.alias("content"))
