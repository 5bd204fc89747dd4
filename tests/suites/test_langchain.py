"""LangChain's own suite for chat models, run through `ChatOpenAI` against the live service.

What it skips by itself is what neither the service nor its models have: images, audio and PDFs as input or in the results of
tools, Anthropic's message format (all of these are refused by name), and one test that measures time against
network traffic that a vendor recorded (VCR). Nothing else is skipped.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any, cast

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.suites.conftest import MODEL
from tests.support.servers import Service


@pytest.mark.weights
class TestChatOpenAI(ChatModelIntegrationTests):
    _url = ""

    @pytest.fixture(autouse=True)
    def _service(self, real: Service) -> None:
        self._url = real.url + "/v1"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Half a billion parameters answer at random with the suite's own temperature, 1, and several of its tests want a tool to
        # be called just once. Without the penalty, its joke about cats repeats one sentence to the end of the context.
        return {
            "model": MODEL,
            "base_url": self._url,
            "api_key": "none",
            "temperature": 0,
            "frequency_penalty": 0.5,
            "max_tokens": 300,
            "timeout": 240,  # seconds; a test machine may be busy
            "max_retries": 0,  # an error is not to hide behind a second try
            "stream_usage": True,  # ChatOpenAI asks for it by itself only where the server is OpenAI's
            # By default one pool of connections serves the whole process, and each test has an event loop of its own.
            "http_async_client": openai.DefaultAsyncHttpxClient(),
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return MODEL  # the only name there is

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatOpenAI(**{**self.chat_model_params, "max_tokens": 2})
        question = "Which of these is a fruit: " + ", ".join(["stone", "iron", "apple", "paper"] * 8) + "?"
        model.invoke(question)
        if not stream:
            return model.invoke(question)
        first, *rest = model.stream(question)
        return cast(AIMessage, reduce(add, rest, first))
