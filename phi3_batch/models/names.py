"""Names for models, looked at before weights are copied: MLflow looks at some of them last."""

import re

import mlflow
from mlflow.exceptions import MlflowException

from phi3_batch.errors import InvalidParameterError
from phi3_batch.words import first_line

# MLflow's rules for the names of logged models and of aliases, which it has no call to ask for.
_NOT_IN_NAMES = "/:.%\"'"
_LONGEST = 250  # of 256 in its tables; a pipeline's second model has a longer name
_ALIAS = re.compile(r"[\w-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)


def check_names(name: str, registered_model_name: str | None, alias: str | None) -> None:
    """See whether MLflow will take the names of a model that is to be logged.

    Args:
        name: of the logged model.
        registered_model_name: of the registered model, which the registry is asked about.
        alias: of its version.

    Raises:
        InvalidParameterError: it will not, or there is an alias and nothing that it belongs to.
        MlflowException: the registry does not answer.
    """
    if not name.strip() or len(name) > _LONGEST or set(name) & set(_NOT_IN_NAMES):
        raise InvalidParameterError(
            f"a logged model cannot be named {name!r}: MLflow takes 1 to {_LONGEST} characters,"
            f" none of them of {' '.join(_NOT_IN_NAMES)}"
        )
    if alias is not None:
        check_alias(alias)
        if registered_model_name is None:
            raise InvalidParameterError("an alias needs a registered model name to belong to")
    if registered_model_name is not None:
        _check_registered_name(registered_model_name)


def check_alias(alias: str) -> None:
    """See whether MLflow will take an alias.

    Raises:
        InvalidParameterError: it will not.
    """
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidParameterError(
            f"an alias cannot be {alias!r}: MLflow takes letters, digits, _ and -, up to 255 of"
            " them, and keeps 'latest' and 'v1', 'v2' … for itself"
        )


def _check_registered_name(name: str) -> None:
    try:
        mlflow.MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE" or len(name) > _LONGEST:
            raise InvalidParameterError(
                f"a model cannot be registered as {name!r}: {first_line(error)}"
            ) from error
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
