"""Rebuild the embedded tiny Phi-3 from nothing but sample_data/questions.jsonl.

    python tools/train_tiny_phi3.py

Trains a tokenizer and a four-layer Phi-3 that knows the answers of questions.jsonl by heart,
saves it as a float16 checkpoint (sample_data/phi3-tiny), builds its int4 form with
phi3_batch.build (sample_data/phi3-tiny-int4) and writes the same rows as prompts.jsonl and
chats.jsonl. Everything is built and verified in a temporary folder: the committed files are
replaced only when every answer is exact in both forms, and the exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoTokenizer, GenerationConfig, Phi3Config, Phi3ForCausalLM

from phi3_batch.build import build_int4
from phi3_batch.errors import Phi3BatchError

SAMPLE_DATA = Path(__file__).resolve().parent.parent / "sample_data"
QUESTIONS = "questions.jsonl"
CHECKPOINT = "phi3-tiny"
INT4 = "phi3-tiny-int4"
RESULTS = (CHECKPOINT, INT4, "prompts.jsonl", "chats.jsonl")

# The layout of Phi-3's vocabulary, 32 times smaller: <unk> <s> </s>, 256 byte tokens,
# characters and merges, then the control tokens at BASE_VOCABULARY + 0 … + 10, then unused
# ids up to the model's vocabulary size.
BASE_VOCABULARY = 1000
MODEL_VOCABULARY = 1024
UNK, BOS, EOS_OF_LLAMA = "<unk>", "<s>", "</s>"
END_OF_TEXT, ASSISTANT, SYSTEM, END, USER = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|user|>",
)
CONTROL_TOKENS = (
    END_OF_TEXT,
    ASSISTANT,
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    SYSTEM,
    END,
    "<|placeholder5|>",
    "<|placeholder6|>",
    USER,
)
SPACE = "\u2581"
# Latin letters are in the alphabet; whatever lies beyond (emoji, arrows, 日本) is spelt in bytes.
LAST_LETTER = "\u017f"

# microsoft/Phi-3-mini-4k-instruct, tokenizer_config.json
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

CONTEXT_LENGTH = 4096
HIDDEN_SIZE = 192
HEAD_SIZE = 32
LAYERS = 4
# The model builder takes any linear layer with MODEL_VOCABULARY outputs for the lm_head, so
# 2 * INTERMEDIATE_SIZE (gate_up) and 3 * HIDDEN_SIZE (qkv) must be something else.
INTERMEDIATE_SIZE = 448

SEED = 0
BATCH_SIZE = 24
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
# From this share of the steps on, every other step sees the weights as int4 rounds them.
QUANTISED_FROM = 0.5
IGNORED_LABEL = -100
LOG_EVERY_STEPS = 100

QUANTISATION_BITS = 4
QUANTISATION_BLOCK = 32
MAX_NEW_TOKENS = 160
LONG_PROMPT_TOKENS = CONTEXT_LENGTH - MAX_NEW_TOKENS
VERIFICATION_BATCH = 48
WRONG_ANSWERS_SHOWN = 10


class VerificationError(Exception):
    """The new model is not what it should be; the committed one stays."""


@dataclass(frozen=True)
class Question:
    """One row of questions.jsonl."""

    id: str
    language: str
    system: str
    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """Chat messages of the row, the system prompt first if there is one."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.question}]

    def prompt(self, newline: str) -> str:
        """Build the raw prompt, with `newline` (a line end or nothing) after control tokens."""
        system = f"{SYSTEM}{newline}{self.system}{END}{newline}" if self.system else ""
        user = f"{USER}{newline}{self.question}{END}{newline}"
        return f"{system}{user}{ASSISTANT}{newline}"


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the answer that must follow it, <|end|> included."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def read_questions(path: Path) -> list[Question]:
    """Read the rows, none of which may ask what another one asks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    questions = [Question(**json.loads(line)) for line in lines]
    if len({q.id for q in questions}) != len(questions):
        raise ValueError(f"{path.name}: ids repeat")
    if len({(q.system, q.question) for q in questions}) != len(questions):
        raise ValueError(f"{path.name}: a question repeats, one of its answers cannot be learnt")
    return questions


# --- tokenizer -------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-fallback BPE of the kind in Phi-3's tokenizer.json, trained on `texts`."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    reserved = [UNK, BOS, EOS_OF_LLAMA, *byte_tokens]
    trainee = Tokenizer(models.BPE())
    trainee.normalizer = llama_normalizer()
    # For training only: merges never cross a word, a digit or a sign, as in Llama's vocabulary.
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPACE), "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    printable_ascii = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        special_tokens=reserved,
        initial_alphabet=[SPACE, *printable_ascii],
        show_progress=False,
    )
    trainee.train_from_iterator(map(keep_letters, texts), trainer)
    return assemble_tokenizer(trainee)


def keep_letters(text: str) -> str:
    """`text` with every character that byte fallback is to spell replaced by a space."""
    return "".join(c if " " <= c <= LAST_LETTER else " " for c in text)


def llama_normalizer() -> normalizers.Normalizer:
    """Mark word starts as Llama does: every space, and the start of the text."""
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def assemble_tokenizer(trainee: Tokenizer) -> Tokenizer:
    """Put a trained vocabulary and its merges into the pipeline of Phi-3's tokenizer.json."""
    trained = json.loads(trainee.to_str())["model"]
    if len(trained["vocab"]) != BASE_VOCABULARY:
        raise ValueError(f"{len(trained['vocab'])} tokens: too little text for {BASE_VOCABULARY}")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=trained["vocab"],
            merges=[tuple(pair) for pair in trained["merges"]],
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = llama_normalizer()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    for token in added_tokens():
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])
    return tokenizer


def added_tokens() -> list[AddedToken]:
    """Phi-3's added tokens with their published flags: rstrip swallows the newline after them."""
    return [
        AddedToken(UNK, normalized=False, special=True),
        AddedToken(BOS, normalized=False, special=True),
        AddedToken(EOS_OF_LLAMA, normalized=False, rstrip=True, special=False),
        *(
            AddedToken(token, normalized=False, rstrip=token != END_OF_TEXT, special=True)
            for token in CONTROL_TOKENS
        ),
    ]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json with the keys that Phi-3 publishes."""
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token.content)): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token in added_tokens()
    }
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "legacy": False,
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": UNK,
        "use_default_system_prompt": False,
    }
    write_json(folder / "tokenizer_config.json", config)


def check_tokenizer(tokenizer: Tokenizer, folder: Path, questions: Sequence[Question]) -> None:
    """Layout of the ids, round trip of every text, the two prompt forms, transformers' reading."""
    for offset, token in enumerate(CONTROL_TOKENS):
        require(tokenizer.token_to_id(token) == BASE_VOCABULARY + offset, f"id of {token}")
    from_transformers = AutoTokenizer.from_pretrained(folder)
    for question in questions:
        ids = tokenizer.encode(question.prompt("\n")).ids
        require(ids == tokenizer.encode(question.prompt("")).ids, f"{question.id}: newlines matter")
        chat = from_transformers.apply_chat_template(
            question.messages, add_generation_prompt=True, return_dict=False
        )
        require(chat == ids, f"{question.id}: transformers' chat template gives other ids")
        answer = tokenizer.encode(question.answer).ids
        require(tokenizer.decode(answer) == question.answer, f"{question.id}: answer round trip")
        require(tokenizer.token_to_id(UNK) not in ids + answer, f"{question.id}: unknown character")


# --- training --------------------------------------------------------------------------------


def make_examples(tokenizer: Tokenizer, questions: Iterable[Question]) -> list[Example]:
    """Encode each prompt and the answer that follows it."""
    examples = []
    for question in questions:
        prompt = tokenizer.encode(question.prompt("\n")).ids
        whole = tokenizer.encode(question.prompt("\n") + question.answer + END).ids
        require(whole[: len(prompt)] == prompt, f"{question.id}: the answer changes the prompt")
        examples.append(Example(prompt, whole[len(prompt) :]))
    return examples


def make_model(tokenizer: Tokenizer) -> Phi3ForCausalLM:
    """Build the untrained model: Phi-3-mini's shape in small, with as many KV heads as heads."""
    heads = HIDDEN_SIZE // HEAD_SIZE
    config = Phi3Config(
        vocab_size=MODEL_VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT_LENGTH,
        original_max_position_embeddings=CONTEXT_LENGTH,
        sliding_window=2047,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[tokenizer.token_to_id(token) for token in (END_OF_TEXT, ASSISTANT, END)],
        pad_token_id=config.pad_token_id,
    )
    return model


class RoundToInt4(nn.Module):
    """Weights as the builder's rtn stores them (symmetric, by blocks of the input dimension).

    Gradients pass through the rounding unchanged. Rounds only while `active`.
    """

    active = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` [outputs, inputs], rounded if active."""
        if not RoundToInt4.active:
            return weight
        low, high = -(2 ** (QUANTISATION_BITS - 1)), 2 ** (QUANTISATION_BITS - 1) - 1
        blocks = weight.detach().view(weight.shape[0], -1, QUANTISATION_BLOCK)
        largest = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8)
        scale = 2 * largest / (high - low)
        rounded = (blocks / scale).round().clamp(low, high) * scale
        return weight + (rounded.view_as(weight) - weight.detach())


def batches_forever(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Batches of rows of about equal length, in a new order in every epoch."""
    while True:
        by_length = sorted(examples, key=lambda e: len(e) * random.uniform(0.8, 1.25))
        starts = list(range(0, len(by_length), BATCH_SIZE))
        random.shuffle(starts)
        for start in starts:
            yield by_length[start : start + BATCH_SIZE]


def collate(batch: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded input ids, attention mask and labels, each [rows, longest row]."""
    length = max(len(example) for example in batch)
    ids = torch.full((len(batch), length), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED_LABEL)
    for row, example in enumerate(batch):
        end = len(example)
        ids[row, :end] = torch.tensor(example.prompt + example.answer)
        mask[row, :end] = 1
        labels[row, len(example.prompt) : end] = torch.tensor(example.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(model: Phi3ForCausalLM, examples: Sequence[Example], steps: int) -> None:
    """Train on the answers until they are known by heart, also with weights rounded to int4."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        parametrize.register_parametrization(linear, "weight", RoundToInt4())
    model.train()
    pad = model.generation_config.pad_token_id
    started = time.monotonic()
    for step, batch in zip(range(steps), batches_forever(examples), strict=False):
        RoundToInt4.active = step >= QUANTISED_FROM * steps and step % 2 == 1
        loss = model(**collate(batch, pad)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY_STEPS == 0 or step == steps - 1:
            say(f"step {step}: loss {loss.item():.5f}, {time.monotonic() - started:.0f} s")
    RoundToInt4.active = False
    for linear in linears:
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    model.eval()


# --- the two folders -------------------------------------------------------------------------


def save_checkpoint(model: Phi3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the float16 checkpoint and its tokenizer files."""
    model.half().save_pretrained(folder)
    # safetensors writes files that only their owner may read
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)


def check_genai_config(folder: Path, model: Phi3ForCausalLM) -> None:
    """Check what the builder made of context length, vocabulary and end tokens."""
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    for key, expected in (
        ("type", "phi3"),
        ("context_length", CONTEXT_LENGTH),
        ("vocab_size", MODEL_VOCABULARY),
        ("eos_token_id", model.generation_config.eos_token_id),
    ):
        require(config[key] == expected, f"genai_config.json: {key} is {config[key]}")


# --- verification ----------------------------------------------------------------------------


def verify_checkpoint(folder: Path, examples: Sequence[Example], end: int) -> list[int]:
    """Greedy answers of the saved checkpoint in float32; the indices of the wrong ones."""
    model = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pad, wrong = model.config.pad_token_id, []
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    for start in range(0, len(order), VERIFICATION_BATCH):
        rows = order[start : start + VERIFICATION_BATCH]
        width = max(len(examples[i].prompt) for i in rows)
        padding = [width - len(examples[i].prompt) for i in rows]
        ids = [[pad] * n + examples[i].prompt for i, n in zip(rows, padding, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        for i, generated in zip(rows, output[:, width:].tolist(), strict=True):
            upto_end = generated[: generated.index(end) + 1] if end in generated else generated
            if upto_end != examples[i].answer:
                wrong.append(i)
    return sorted(wrong)


def load_int4(folder: Path, threads: int) -> og.Model:
    """Load the exported folder on `threads` threads; the runtime's own default is slow."""
    config = og.Config(str(folder))
    session_options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": session_options}}))
    return og.Model(config)


def verify_int4(model: og.Model, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[int]:
    """Greedy answers of onnxruntime-genai, one row at a time; the indices of the wrong ones."""
    wrong = []
    for index, question in enumerate(questions):
        prompt = tokenizer.encode(question.prompt("\n" if index % 2 else "")).ids
        text, last = answer_greedily(model, tokenizer, prompt)
        if text != question.answer or last != tokenizer.token_to_id(END):
            wrong.append(index)
            if len(wrong) <= WRONG_ANSWERS_SHOWN:
                say(f"{question.id}: {text!r} instead of {question.answer!r}")
    return wrong


def check_long_prompt(model: og.Model, tokenizer: Tokenizer) -> None:
    """Check that a prompt which nearly fills the context is computed, whatever the answer."""
    prompt = tokenizer.encode(USER + " a" * LONG_PROMPT_TOKENS).ids[:LONG_PROMPT_TOKENS]
    try:
        answer_greedily(model, tokenizer, prompt)
    except RuntimeError as error:
        raise VerificationError(f"a prompt of {len(prompt)} tokens fails: {error}") from error


def answer_greedily(model: og.Model, tokenizer: Tokenizer, prompt: list[int]) -> tuple[str, int]:
    """Return the text generated after `prompt`, and the token that ended it."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + MAX_NEW_TOKENS)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    generated: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        generated.append(int(generator.get_next_tokens()[0]))
    return tokenizer.decode(generated), generated[-1]


# --- the tables ------------------------------------------------------------------------------


def write_samples(questions: Sequence[Question], folder: Path) -> None:
    """prompts.jsonl, with and without newlines after control tokens in turn, and chats.jsonl."""
    prompts, chats = [], []
    for row, question in enumerate(questions):
        name = {"id": question.id, "language": question.language}
        prompt = question.prompt("" if row % 2 else "\n")
        prompts.append({**name, "prompt": prompt, "answer": question.answer})
        chats.append({**name, "messages": question.messages, "answer": question.answer})
    for file, rows in (("prompts.jsonl", prompts), ("chats.jsonl", chats)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / file).write_text(text, encoding="utf-8")


def move_into_place(built: Path, target: Path) -> None:
    """Replace the results in `target` by those in `built`."""
    for name in RESULTS:
        destination = target / name
        if destination.is_dir():
            shutil.rmtree(destination)
        destination.unlink(missing_ok=True)
        shutil.move(built / name, destination)


# --- small things ----------------------------------------------------------------------------


def require(condition: bool, complaint: str) -> None:
    """Raise VerificationError unless `condition` holds."""
    if not condition:
        raise VerificationError(complaint)


def write_json(path: Path, value: Any) -> None:
    """Write indented UTF-8 JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def size_bytes(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def build(questions: Sequence[Question], folder: Path, steps: int, threads: int) -> None:
    """Build and verify everything in `folder`.

    Raises:
        Phi3BatchError: the checkpoint could not be built into its int4 form.
        VerificationError: an answer is not exact, or a file is not what it should be.
    """
    checkpoint, int4 = folder / CHECKPOINT, folder / INT4
    checkpoint.mkdir()
    tokenizer = train_tokenizer([t for q in questions for t in (q.system, q.question, q.answer)])
    end = tokenizer.encode(END).ids[0]
    model = make_model(tokenizer)
    examples = make_examples(tokenizer, questions)
    train(model, examples, steps)
    save_checkpoint(model, tokenizer, checkpoint)
    check_tokenizer(tokenizer, checkpoint, questions)
    build_int4(checkpoint, int4, algorithm="rtn", block_size=QUANTISATION_BLOCK)
    check_genai_config(int4, model)
    wrong_fp = verify_checkpoint(checkpoint, examples, end)
    say(f"checkpoint, float32: {len(questions) - len(wrong_fp)} of {len(questions)} exact")
    runtime_model = load_int4(int4, threads)
    check_long_prompt(runtime_model, tokenizer)
    wrong_int4 = verify_int4(runtime_model, tokenizer, questions)
    say(f"int4, onnxruntime-genai: {len(questions) - len(wrong_int4)} of {len(questions)} exact")
    wrong = [questions[i].id for i in sorted({*wrong_fp, *wrong_int4})]
    shown = ", ".join(wrong[:WRONG_ANSWERS_SHOWN])
    require(not wrong, f"{len(wrong)} questions answered wrongly, the first are {shown}")
    write_samples(questions, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sample-data", type=Path, default=SAMPLE_DATA, help="the folder to read and write"
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    options = parser.parse_args(arguments)

    started = time.monotonic()
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    questions = read_questions(options.sample_data / QUESTIONS)
    with tempfile.TemporaryDirectory(prefix="train-tiny-phi3-") as temporary:
        try:
            build(questions, Path(temporary), options.steps, options.threads)
        except (Phi3BatchError, VerificationError) as error:
            print(f"not replaced: {error}", file=sys.stderr)
            return 1
        move_into_place(Path(temporary), options.sample_data)
    for name in RESULTS:
        say(f"{name}: {size_bytes(options.sample_data / name) / 1e6:.2f} MB")
    say(f"{len(questions)} questions, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
