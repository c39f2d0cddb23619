"""`mlflow models serve`: the models behind HTTP, in processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel

from phi3_batch.models.log import log_chat_model, log_pipeline_model, log_prompt_model
from tests.conftest import TINY_CHECKPOINT, TINY_MODEL, ChatSample, Sample

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
JOKE = [
    {"role": "system", "content": "You are a stand-up comedian."},
    {"role": "user", "content": "Tell me a joke about atom"},
]
ANSWERED = [*SPAIN, {"role": "assistant", "content": "Madrid."}]
MADRID = "The capital of Spain is Madrid."

# two chats with parameters of their own, in the forms that MLflow takes several chats in
COLUMNS = ["messages", "max_tokens", "temperature"]
ROWS = [[SPAIN, 60, 0.0], [JOKE, 3, 0.0]]
CHATS = {
    "dataframe_split": {"columns": COLUMNS, "data": ROWS},
    "dataframe_records": [dict(zip(COLUMNS, row, strict=True)) for row in ROWS],
}

PROMPTS = [
    f"<|user|>What is the capital of {place}?<|end|><|assistant|>" for place in ("Spain", "France")
]
PROMPT_FORMS = [
    {"dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in PROMPTS]}},
    {"dataframe_records": [{"prompt": prompt} for prompt in PROMPTS]},
    {"inputs": PROMPTS},
    {"inputs": {"prompt": PROMPTS}},
    {"instances": PROMPTS},
    {"instances": [{"prompt": prompt} for prompt in PROMPTS]},
]


@dataclass(frozen=True)
class Server:
    """A model behind HTTP, and the same model in this process."""

    model: PyFuncModel
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, body: object) -> Any:
        """What /invocations answers to a sound request."""
        status, answer = self.request("POST", "/invocations", json.dumps(body).encode())
        assert status == 200, answer
        return json.loads(answer)

    def await_start(self, deadline: float) -> None:
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                assert self.request("GET", "/ping")[0] == 200
                return
            except ConnectionRefusedError:
                time.sleep(0.2)


@pytest.fixture(scope="module")
def servers(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """A server for each model, all of them started together."""
    uris = {
        "chat": log_chat_model(TINY_MODEL).model_uri,
        "pipeline": log_pipeline_model(TINY_CHECKPOINT).model_uri,
        "prompt": log_prompt_model(TINY_MODEL).model_uri,
    }
    folder = tmp_path_factory.mktemp("servers")
    started = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))  # load_model puts the model's code on it
        try:
            for name, uri in uris.items():
                started[name] = start(name, uri, store, folder)
            deadline = time.monotonic() + 120
            for server in started.values():
                server.await_start(deadline)
            yield started
        finally:
            for server in started.values():
                os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait()


def start(name: str, uri: str, store: Path, folder: Path) -> Server:
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",  # where it finds uvicorn
        "TMPDIR": str(folder),  # it copies the model there, and leaves it
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(mlflow.pyfunc.load_model(uri), port, process, log)


@pytest.fixture(params=["chat", "pipeline"])
def chat_server(servers: dict[str, Server], request: pytest.FixtureRequest) -> Server:
    return servers[request.param]


@pytest.fixture
def prompt_server(servers: dict[str, Server]) -> Server:
    return servers["prompt"]


def comparable(completions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chat completions without what differs from call to call."""
    own = ("id", "created")
    return [{key: row[key] for key in row if key not in own} for row in completions]


def contents(completions: list[dict[str, Any]]) -> list[str]:
    return [completion["choices"][0]["message"]["content"] for completion in completions]


def assert_kept_to_itself(server: Server, asked: list[ChatSample]) -> None:
    """The server's output tells of requests, and of nothing that was in them or came of them."""
    said = server.log.read_text()
    assert said.count('"POST /invocations HTTP/1.1" 200') >= len(asked)
    texts = [text for row in asked for text in (row.messages[-1]["content"], row.answer)]
    assert not [text for text in texts if len(text) > 20 and text[:20] in said]


# chats, by the chat and the pipeline model


def test_a_chat_as_openai_clients_write_it(chat_server: Server) -> None:
    chat = {"messages": SPAIN, "max_tokens": 60, "temperature": 0.0}
    answer = chat_server.post(chat)  # a list of one completion, without "predictions" around it
    assert contents(answer) == [MADRID]
    assert comparable(answer) == comparable(chat_server.model.predict(chat))


def test_an_answer_of_a_shape_as_openai_clients_ask_for_it(chat_server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Madrid"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wrapped = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    chat = {"messages": SPAIN, "max_tokens": 60, "response_format": wrapped, "logprobs": True}
    [answer] = chat_server.post(chat)
    [choice] = answer["choices"]
    assert json.loads(choice["message"]["content"])["city"] == "Madrid"
    assert len(choice["logprobs"]["content"]) == answer["usage"]["completion_tokens"]
    [answer] = chat_server.post({"messages": SPAIN, "choices": ["no", MADRID]})
    assert contents([answer]) == [MADRID]
    assert [each["choice"] for each in answer["probabilities"]] == ["no", MADRID]


def test_a_chat_under_inputs(chat_server: Server) -> None:
    chat = {"messages": SPAIN, "max_tokens": 60, "temperature": 0.0}
    answer = chat_server.post({"inputs": chat})
    assert list(answer) == ["predictions"]
    assert contents(answer["predictions"]) == [MADRID]
    assert comparable(answer["predictions"]) == comparable(chat_server.model.predict(chat))


@pytest.mark.parametrize("form", CHATS)
def test_several_chats_each_with_its_own_parameters(chat_server: Server, form: str) -> None:
    answer = chat_server.post({form: CHATS[form]})
    first, second = answer["predictions"]
    assert contents([first, second]) == [MADRID, "Why shou"]
    assert [row["choices"][0]["finish_reason"] for row in (first, second)] == ["stop", "length"]
    assert second["usage"]["completion_tokens"] == 3
    here = chat_server.model.predict(pd.DataFrame(ROWS, columns=COLUMNS))
    assert comparable(answer["predictions"]) == comparable(here)


def test_a_row_that_cannot_be_answered_is_not_an_http_error(chat_server: Server) -> None:
    rows = [[ANSWERED], [SPAIN]]
    answer = chat_server.post({"dataframe_split": {"columns": ["messages"], "data": rows}})
    refused, answered = answer["predictions"]
    assert refused["object"] == "error"
    assert refused["choices"][0]["finish_reason"].startswith("invalid_messages: ")
    assert answered["object"] == "chat.completion"
    assert contents([refused, answered]) == ["", MADRID]


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [',
        b"[]",
        b'{"chats": []}',
        b'{"messages": "hello"}',
        b'{"messages": [{"content": "hello"}]}',
        b'{"messages": [{"role": "user", "content": "hello"}], "max_tokens": "many"}',
        b'{"dataframe_split": {"columns": ["prompt"], "data": [["hello"]]}}',
    ],
    ids=["cut", "list", "unknown key", "no list", "no role", "no number", "other column"],
)
def test_a_malformed_request_is_a_bad_request(chat_server: Server, body: bytes) -> None:
    status, answer = chat_server.request("POST", "/invocations", body)
    assert status == 400
    assert json.loads(answer)["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")


def test_everybody_gets_their_own_answer(
    chat_server: Server, chat_samples: list[ChatSample]
) -> None:
    asked = chat_samples[::20]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(chat_server.post, [{"messages": s.messages} for s in asked]))
    assert [contents(answer) for answer in answers] == [[sample.answer] for sample in asked]
    assert_kept_to_itself(chat_server, asked)


# prompts


@pytest.mark.parametrize("body", PROMPT_FORMS, ids=lambda body: "-".join(shape(body)))
@pytest.mark.parametrize("params", [{}, {"usage": True, "max_tokens": 3}], ids=["text", "usage"])
def test_prompts_in_every_form(
    prompt_server: Server, body: dict[str, Any], params: dict[str, Any]
) -> None:
    answer = prompt_server.post(body | ({"params": params} if params else {}))["predictions"]
    here = prompt_server.model.predict(pd.DataFrame({"prompt": PROMPTS}), params=params)
    if params:
        assert answer == here.to_dict("records")
        assert answer[0]["completion"] == "The capital of"
        assert answer[0]["finish_reason"] == "length"
    else:
        assert answer == here == [MADRID, "The capital of France is Paris."]


def shape(body: dict[str, Any]) -> Iterator[str]:
    for form, value in body.items():
        yield form
        yield "columns" if isinstance(value, dict) else f"list of {type(value[0]).__name__}"


def test_a_prompt_with_its_parameters_beside_it(prompt_server: Server) -> None:
    prompt = {"prompt": PROMPTS[0]}
    assert prompt_server.post(prompt) == [MADRID]
    params = {"usage": True, "max_tokens": 3}
    here = prompt_server.model.predict(prompt, params=params)
    assert prompt_server.post(prompt | params) == here.to_dict("records")


def test_a_prompt_that_cannot_be_answered_is_not_an_http_error(prompt_server: Server) -> None:
    rows = {"columns": ["prompt"], "data": [[None], [PROMPTS[0]]]}
    answer = prompt_server.post({"dataframe_split": rows, "params": {"usage": True}})
    assert [row["error"]["code"] for row in answer["predictions"]] == ["null_prompt", ""]
    assert [row["completion"] for row in answer["predictions"]] == ["", MADRID]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt"',
        b'{"dataframe_split": {"columns": ["text"], "data": [["hello"]]}}',
        b'{"inputs": ["hello"], "params": {"max_tokens": "many"}}',
        b'{"inputs": ["hello"], "params": {"max_tokens": 0}}',
    ],
    ids=["cut", "other column", "no number", "out of range"],
)
def test_a_malformed_request_for_prompts_is_a_bad_request(
    prompt_server: Server, body: bytes
) -> None:
    assert prompt_server.request("POST", "/invocations", body)[0] == 400


def test_every_prompt_gets_its_own_answer(
    prompt_server: Server, samples: list[Sample], chat_samples: list[ChatSample]
) -> None:
    asked = samples[::20]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(prompt_server.post, [{"prompt": s.prompt} for s in asked]))
    assert answers == [[sample.answer] for sample in asked]
    assert_kept_to_itself(prompt_server, chat_samples[::20])
