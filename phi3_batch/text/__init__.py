"""Text to token ids and back: the tokenizer, Phi-3's chat template, and what text is refused."""

from phi3_batch.text.checks import find_text_error
from phi3_batch.text.template import ChatTemplate, Message
from phi3_batch.text.tokenizer import TextStream, Tokenizer

__all__ = ["ChatTemplate", "Message", "TextStream", "Tokenizer", "find_text_error"]
