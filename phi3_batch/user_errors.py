"""What is raised for something that a user did, in one line."""

from mlflow.exceptions import MlflowException

from phi3_batch.scoring.compat import SPARK_ERRORS
from phi3_batch.scoring.job import faults
from phi3_batch.scoring.said import first_line


def in_one_line(error: Exception) -> str | None:
    """What to tell the user of an error that is not ours; None where it is a mistake of ours."""
    if isinstance(error, MlflowException):  # a store that does not answer, a name it refuses
        return f"MLflow: {first_line(error)}"
    if isinstance(error, SPARK_ERRORS):  # a file that has gone, a full disk
        said = faults.why(error)
        return f"Spark: {said}" if said == first_line(error) else said
    if isinstance(error, OSError) and faults.is_of_the_machine(error):
        return faults.why(error)
    return None
