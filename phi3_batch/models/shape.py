"""What can be wrong with the shape that is asked of answers, before any is generated."""

from phi3_batch.engines.chooser import find_bias
from phi3_batch.generation import GenerationParams
from phi3_batch.text import Constraint, Tokenizer


def check_shape(params: GenerationParams, tokenizer: Tokenizer) -> None:
    """See that a model can follow what holds for all rows.

    Raises:
        InvalidParameterError: a constraint cannot be read or followed, or a text of logit_bias is
            no token of the model.
    """
    if params.is_constrained:
        Constraint.of(params).check()
    find_bias(tokenizer, params)
