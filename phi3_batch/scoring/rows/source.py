"""Which columns of a table become the requests of a model, and whether they can."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    IntegralType,
    MapType,
    NumericType,
    StringType,
    StructType,
)

from phi3_batch.contract import CHAT_PARAMS, MESSAGES_INPUT, PROMPT_INPUT
from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.scoring.rows.columns import find_field, named, typed
from phi3_batch.scoring.rows.hidden import hide
from phi3_batch.scoring.rows.model import FoundModel, ScoringModel
from phi3_batch.scoring.rows.requests import (
    PARAM_TYPES,
    RowRequests,
    chat_requests,
    literal,
    prompt_requests,
    turns_of,
)
from phi3_batch.scoring.rows.user_template import NOT_IN_BRACES, UserTemplate
from phi3_batch.scoring.rows.values import TEXT_TYPES


@dataclass(frozen=True, slots=True)
class Source:
    """Where the user says that the requests are.

    Attributes:
        column: of prompts or messages; None is the one that has the name of the model's input.
        system: the system message of chats that are made by ``user_template``.
        user_template: makes messages of plain columns.
        param_columns: for a chat model, columns of parameters by the parameters' names.
    """

    column: str | None = None
    system: str | None = None
    user_template: UserTemplate | None = None
    param_columns: Mapping[str, str] = field(default_factory=dict)

    def describe(self, model: FoundModel) -> str:
        """What is read, in a few words."""
        if self.user_template:
            return f"messages made of {', '.join(self.user_template.columns)}"
        return f"column {self.column or (MESSAGES_INPUT if model.takes_messages else PROMPT_INPUT)}"

    def request_columns(self, model: FoundModel) -> tuple[str, ...]:
        """Names of the columns that shape a row's completion."""
        if self.user_template:
            texts = self.user_template.columns
        else:
            texts = (self.column or (MESSAGES_INPUT if model.takes_messages else PROMPT_INPUT),)
        return (*texts, *(self.param_columns[name] for name in sorted(self.param_columns)))

    def settings(self) -> dict[str, str]:
        """Where requests come from; texts as digests, for a template is somebody's prompt too."""
        template = self.user_template
        described = {
            "column": self.column,
            "system_sha256": _sha256(self.system),
            "user_template_sha256": _sha256(template.text) if template else None,
            "user_template_columns": ",".join(template.columns) if template else None,
            **{f"params.{name}": f"col:{column}" for name, column in self.param_columns.items()},
        }
        return {name: value for name, value in described.items() if value is not None}

    def check(self, model: FoundModel, table: StructType, where: str) -> None:
        """See whether a table has what the model wants.

        Raises:
            TableError: a column is missing or of another type.
            InvalidParameterError: an option has no meaning for this model.
        """
        if model.takes_messages:
            self._check_chats(model, table, where)
            return
        for option, given in (
            ("--system", self.system),
            ("--user-template", self.user_template),
            ("--param", self.param_columns),
        ):
            if given not in (None, {}):
                raise InvalidParameterError(
                    f"{option} is for models of messages, and {model.uri} takes prompts: log the"
                    " same folder with phi3-batch log chat"
                )
        found = self._find_column(table, where, PROMPT_INPUT)
        if not isinstance(found, TEXT_TYPES):
            name = self.column or PROMPT_INPUT
            raise TableError(f"column {name!r} of {where} is {found.simpleString()}, not string")

    def pilot_prompts(self, rows: DataFrame) -> list[str]:
        """Two prompts of a table that a model may be asked; fewer where there are none."""
        prompt = named(self.column or PROMPT_INPUT)
        sound = rows.where(prompt_requests(prompt).refusal.isNull())
        return [row[0] for row in sound.select(prompt).head(2)]

    def requests(self, model: ScoringModel, table: StructType) -> RowRequests:
        """The requests of each row of a table that was checked, with :meth:`texts` beside it."""
        most_bytes = model.most_bytes
        if not model.takes_messages:
            prompt, _ = typed(table, self.column or PROMPT_INPUT)
            # of CHAR, and of any collation
            return prompt_requests(prompt.cast("string"), most_bytes=most_bytes)
        defaults = {**model.defaults, **model.params}
        defaults["stop"] = F.array(*map(hide, defaults["stop"])).cast(PARAM_TYPES["stop"])
        params = {name: literal(defaults[name]) for name in model.params if name in CHAT_PARAMS}
        params |= {name: typed(table, column)[0] for name, column in self.param_columns.items()}
        if self.user_template is None:
            messages = turns_of(*typed(table, self.column or MESSAGES_INPUT))
            return chat_requests(messages, params, defaults, most_bytes=most_bytes)
        messages, refusal = self.user_template.messages(table, self.system)
        made = chat_requests(messages, params, defaults, most_bytes=most_bytes)
        return RowRequests(made.inputs, F.coalesce(refusal, made.refusal))

    def texts(self, model: ScoringModel) -> tuple[str, ...]:
        """What :meth:`requests` hides: texts that hold for every row."""
        if not model.takes_messages:
            return ()
        parts = [text for text, _ in self.user_template.parts] if self.user_template else []
        system = [] if self.system is None else [self.system]
        return (*system, *parts, *{**model.defaults, **model.params}["stop"])

    def _find_column(self, table: StructType, where: str, wanted: str) -> DataType:
        name = self.column or wanted
        found = find_field(table, name)
        if found is None:
            hint = "name the prompts' column with --column"
            if wanted == MESSAGES_INPUT:
                hint = "name another with --column, or make messages with --user-template"
            raise TableError(
                f"{where} has no column {name!r}, its columns are"
                f" {', '.join(table.fieldNames())}; {hint}"
            )
        return found.dataType

    def _check_chats(self, model: FoundModel, table: StructType, where: str) -> None:
        for name, column in self.param_columns.items():
            if name not in model.row_params:
                raise InvalidParameterError(
                    f"a chat has no parameter {name!r} of its own for {model.uri}, but"
                    f" {', '.join(model.row_params)}"
                )
            _check_param_column(table, where, name, column)
        if self.user_template:
            if self.column:
                raise InvalidParameterError(
                    "--column names messages that are there and --user-template makes others:"
                    " give one of them"
                )
            self.user_template.check(table, where)
            return
        if self.system is not None:
            raise InvalidParameterError(
                "--system needs --user-template: the messages in the column have their own"
            )
        found = self._find_column(table, where, MESSAGES_INPUT)
        name = self.column or MESSAGES_INPUT
        if isinstance(found, StringType):
            rename = "rename it, and " if set(name) & NOT_IN_BRACES else ""
            raise TableError(
                f"column {name!r} of {where} is string, not messages: {rename}make messages of it"
                f" with --user-template {shlex.quote('{' + ('NAME' if rename else name) + '}')}"
            )
        if not _is_messages(found):
            raise TableError(
                f"column {name!r} of {where} is {found.simpleString()}, not"
                " array<struct<role:string,content:string>>"
            )


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _is_messages(found: DataType) -> bool:
    if not isinstance(found, ArrayType):
        return False
    message = found.elementType
    if isinstance(message, MapType):
        return isinstance(message.keyType, StringType) and isinstance(message.valueType, StringType)
    if not isinstance(message, StructType):
        return False
    role, content = find_field(message, "role"), find_field(message, "content")
    if role is None or content is None or not isinstance(role.dataType, StringType):
        return False
    return isinstance(content.dataType, StringType) or _are_parts(content.dataType)


def _are_parts(found: DataType) -> bool:
    """Whether it is a list of parts of a content, each with a type and, some of them, text."""
    part = found.elementType if isinstance(found, ArrayType) else None
    return isinstance(part, StructType) and all(
        (field := find_field(part, name)) is not None and isinstance(field.dataType, StringType)
        for name in ("type", "text")
    )


def _check_param_column(table: StructType, where: str, name: str, column: str) -> None:
    found = find_field(table, column)
    if found is None:
        raise TableError(
            f"{where} has no column {column!r} for {name}, its columns are"
            f" {', '.join(table.fieldNames())}"
        )
    fits = {
        "double": isinstance(found.dataType, NumericType),
        "long": isinstance(found.dataType, IntegralType),
        "array<string>": isinstance(found.dataType, ArrayType)
        and isinstance(found.dataType.elementType, StringType),
    }
    if not fits[PARAM_TYPES[name]]:
        raise TableError(
            f"column {column!r} of {where} is {found.dataType.simpleString()}, and {name} is"
            f" {PARAM_TYPES[name]}"
        )
