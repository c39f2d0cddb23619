"""Chat templates as models are published with them, and folders that have one."""

import json
import shutil
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from phi3_batch.model_files import Checkpoint
from phi3_batch.text import ChatTemplate
from tests.conftest import TINY_CHECKPOINT

_PHI4_MINI = """\
{% for message in messages %}\
{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}\
{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] \
+ '<|/tool|>' + '<|end|>' }}\
{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
"""

_PHI4 = r"""{% for message in messages %}{% if (message['role'] == 'system') %}
{{- '<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}
{%- elif (message['role'] == 'user') %}
{{- '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}
{%- elif (message['role'] == 'assistant') %}
{{- '<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

_SMOLLM2 = r"""{% for message in messages %}
{%- if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_LLAMA3 = r"""{% set loop_messages = messages %}{% for message in loop_messages %}
{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' \
+ message['content'] | trim + '<|eot_id|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
""".replace("\\\n", "").rstrip()

# with what training looks at between marks, as the newer ones have it
_GENERATION = r"""{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}
{%- generation %}{{ '<|assistant|>' + message.content + '<|end|>' }}{% endgeneration %}
{%- elif message.content is string %}{{ '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' }}
{%- else %}{% continue %}
{%- endif %}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"""

# Its turns are ordinary text. A system message is part of the first of them.
_MISTRAL = r"""{% if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
{%- endif %}{% endfor %}"""

TEMPLATES = {
    "phi-4-mini": _PHI4_MINI,
    "phi-4": _PHI4,
    "smollm2": _SMOLLM2,
    "llama-3": _LLAMA3,
    "generation": _GENERATION,
    "mistral": _MISTRAL,
}

# of Phi-3-mini's first builds
FIRST_PHI3 = r"""{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}
{{- '<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}
{%- elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}
{%- endif %}{% endfor %}"""

CONTROL_TOKENS = [
    *("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|tool|>", "<|/tool|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>"),
]

_CORPUS = [
    *("\nWhat is the capital of Spain?", "\nThe capital is Madrid.", "\n\nHi there\n"),
    *("user\nHello, how are you?", "assistant\nI don't know.", "[INST] 12345 [/INST]"),
]


def byte_level_tokenizer(file: Path, control_tokens: list[str]) -> None:
    """Write a tokenizer whose control tokens leave the white space after them alone."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control_tokens])
    tokenizer.save(str(file))


def _of_phi3(file: Path, scheme: str | None = None) -> None:
    """Write Phi-3's, whose control tokens swallow white space, with all others beside them."""
    tokenizer = tokenizers.Tokenizer.from_file(str(TINY_CHECKPOINT / "tokenizer.json"))
    new = [token for token in CONTROL_TOKENS if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True) for token in new])
    if scheme:  # as it is where transformers has converted it
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.save(str(file))


def _swallowing(file: Path) -> None:
    """Write one whose control tokens swallow the white space on both sides."""
    byte_level_tokenizer(file, [])
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=True, rstrip=True) for token in CONTROL_TOKENS]
    )
    tokenizer.save(str(file))


TOKENIZERS = {
    "of-phi-3": _of_phi3,
    "of-phi-3-converted": lambda file: _of_phi3(file, "first"),
    "of-bytes": lambda file: byte_level_tokenizer(file, CONTROL_TOKENS),
    "swallowing": _swallowing,
}


def write_folder(folder: Path, template: str, kind: str = "of-bytes") -> None:
    """Write a checkpoint with a tokenizer and a chat template, and no weights."""
    TOKENIZERS[kind](folder / "tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(TINY_CHECKPOINT / "config.json", folder)
    (folder / "model.safetensors").write_text("none")


def template_of(folder: Path) -> ChatTemplate:
    """The chat template of such a folder."""
    return Checkpoint.open(folder).chat_template
