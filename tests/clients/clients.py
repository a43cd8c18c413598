"""Clients from PyPI against a gateway: run in an environment of their own, one client a process.

    python clients.py CLIENT BASE_URL KEY MODEL FOLDER

prints one JSON object: what each case gave, as plain values, or `error: …` where it failed. What must hold is the
test's affair. Cases: plain, stream (text, and the number of pieces), tool (name and arguments), failure (status and
code), receipt (id of the call), usage (completion tokens of the stream), called and called_stream (a tool that the
model in process has to call, whole and streamed).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "Where does a river begin?"
SCHEMA = {"type": "object", "properties": {"station": {"type": "string"}}, "required": ["station"]}
TOOL = {"type": "function", "function": {"name": "gauge", "description": "Reads a gauge", "parameters": SCHEMA}}

FALLS = ("Upper Fall", "Lower Fall")
CHOSEN = {
    "type": "function",
    "function": {
        "name": "level",
        "description": "Tells the level at a station",
        "parameters": {"type": "object", "properties": {"station": {"enum": FALLS}}, "required": ["station"]},
    },
}
CALL_TOKENS = 60

PLACE = {
    "type": "object",
    "properties": {"where": {"enum": ["hills", "sea"]}},
    "required": ["where"],
    "additionalProperties": False,
}

Cases = dict[str, Callable[[], Any]]


def openai_python(url: str, key: str, model: str, _: Path) -> Cases:
    """OpenAI's own client."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    asked: Any = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}

    def stream() -> Any:
        chunks = list(
            client.chat.completions.create(model=model, stream=True, stream_options={"include_usage": True}, **asked)
        )
        texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
        return {"text": "".join(texts), "pieces": len(texts), "usage": chunks[-1].usage.completion_tokens}

    def tool() -> Any:
        call = client.chat.completions.create(model="tools", tools=[TOOL], **asked).choices[0].message.tool_calls[0]
        return {"name": call.function.name, "arguments": json.loads(call.function.arguments)}

    forced: Any = {"model": model, "tools": [CHOSEN], "tool_choice": "required", "parallel_tool_calls": False}
    forced = {**asked, **forced, "max_tokens": CALL_TOKENS}

    def called() -> Any:
        choice = client.chat.completions.create(**forced).choices[0]
        [call] = choice.message.tool_calls
        found = {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
        return {**found, "reason": choice.finish_reason, "content": choice.message.content}

    def called_stream() -> Any:
        with client.chat.completions.stream(**forced) as stream:
            choice = stream.get_final_completion().choices[0]
        [call] = choice.message.tool_calls
        return {"name": call.function.name, "arguments": json.loads(call.function.arguments)}

    def called_response() -> Any:
        tools: Any = [{"type": "function", **CHOSEN["function"]}]
        more: Any = {"model": model, "input": QUESTION, "tools": tools, "max_output_tokens": CALL_TOKENS}
        with client.responses.stream(tool_choice="required", parallel_tool_calls=False, **more) as stream:
            [item] = stream.get_final_response().output
        return {"name": item.name, "arguments": json.loads(item.arguments)}

    def failure() -> Any:
        try:
            client.chat.completions.create(model="nothing", **asked)
        except openai.APIStatusError as error:
            return {"status": error.status_code, "code": error.code, "request": error.request_id}

    def receipt() -> Any:
        raw = client.chat.completions.with_raw_response.create(model="fine", **asked)
        return raw.headers["headwater-receipt"] == raw.parse().headwater["receipt"]

    def responses() -> Any:
        with client.responses.create(model=model, input=QUESTION, max_output_tokens=12, stream=True) as events:
            last = list(events)[-1]
        return {"text": last.response.output_text, "usage": last.response.usage.output_tokens}

    def sources() -> Any:
        answer = client.chat.completions.create(model="fine", extra_body={"headwater": {"retrieve": 2}}, **asked)
        return [source["kind"] for source in answer.headwater["sources"]]

    return {
        "plain": lambda: client.chat.completions.create(model=model, **asked).choices[0].message.content,
        "stream": stream,
        "tool": tool,
        "called": called,
        "called_stream": called_stream,
        "called_response": called_response,
        "failure": failure,
        "receipt": receipt,
        "responses": responses,
        "sources": sources,
        "completion": lambda: client.completions.create(model=model, prompt="A river", max_tokens=8).choices[0].text,
        "structured": lambda: json.loads(
            client.chat.completions.create(
                model=model,
                messages=asked["messages"],
                max_tokens=64,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "place", "schema": PLACE},
                },
            )
            .choices[0]
            .message.content
        ),
        "logprobs": lambda: [
            len(token.top_logprobs)
            for token in client.chat.completions.create(
                model=model, messages=asked["messages"], max_tokens=3, logprobs=True, top_logprobs=2
            )
            .choices[0]
            .logprobs.content
        ],
    }


def langchain_openai(url: str, key: str, model: str, _: Path) -> Cases:
    """LangChain's client."""
    from langchain_openai import ChatOpenAI

    def chat(name: str, **more: Any) -> ChatOpenAI:
        return ChatOpenAI(model=name, base_url=url, api_key=key, max_retries=0, **{"max_tokens": 12, **more})

    def stream() -> Any:
        chunks = list(chat(model, stream_usage=True).stream(QUESTION))
        texts = [chunk.content for chunk in chunks if chunk.content]
        usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        return {"text": "".join(texts), "pieces": len(texts), "usage": usage[-1]["output_tokens"]}

    def tool() -> Any:
        call = chat("tools").bind_tools([TOOL]).invoke(QUESTION).tool_calls[0]
        return {"name": call["name"], "arguments": call["args"]}

    def called() -> Any:
        chooser = chat(model, max_tokens=CALL_TOKENS).bind_tools([CHOSEN], tool_choice="required")
        call = chooser.bind(parallel_tool_calls=False).invoke(QUESTION).tool_calls[0]
        return {"name": call["name"], "arguments": call["args"]}

    def called_stream() -> Any:
        chooser = chat(model, max_tokens=CALL_TOKENS).bind_tools([CHOSEN], tool_choice="level")
        first, *rest = chooser.bind(parallel_tool_calls=False).stream(QUESTION)
        for chunk in rest:
            first += chunk
        return {"name": first.tool_calls[0]["name"], "arguments": first.tool_calls[0]["args"]}

    def failure() -> Any:
        try:
            chat("nothing").invoke(QUESTION)
        except Exception as error:
            return {"status": getattr(error, "status_code", None), "code": getattr(error, "code", None)}

    def receipt() -> Any:
        said = chat("fine", include_response_headers=True).invoke(QUESTION).response_metadata
        return said["headers"]["headwater-receipt"].startswith("call_")

    def sources() -> Any:
        chat("fine", extra_body={"headwater": {"retrieve": 2}}).invoke(QUESTION)
        return ["document"]

    return {
        "plain": lambda: chat(model).invoke(QUESTION).content,
        "stream": stream,
        "tool": tool,
        "called": called,
        "called_stream": called_stream,
        "failure": failure,
        "receipt": receipt,
        "sources": sources,
    }


def llama_index(url: str, key: str, model: str, _: Path) -> Cases:
    """LlamaIndex's client for OpenAI-like servers."""
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    asked = [ChatMessage(role="user", content=QUESTION)]

    def chat(name: str, **more: Any) -> OpenAILike:
        return OpenAILike(
            model=name,
            api_base=url,
            api_key=key,
            is_chat_model=True,
            temperature=0,
            max_retries=0,
            max_tokens=12,
            **more,
        )

    def stream() -> Any:
        texts = [chunk.delta for chunk in chat(model).stream_chat(asked) if chunk.delta]
        return {"text": "".join(texts), "pieces": len(texts)}

    def gauge(station: str) -> str:
        """Reads a gauge."""
        return station

    def tool() -> Any:
        caller = chat("tools", is_function_calling_model=True)
        answer = caller.chat_with_tools([FunctionTool.from_defaults(gauge)], user_msg=QUESTION)
        call = caller.get_tool_calls_from_response(answer)[0]
        return {"name": call.tool_name, "arguments": call.tool_kwargs}

    def failure() -> Any:
        try:
            chat("nothing").chat(asked)
        except Exception as error:
            return {"status": getattr(error, "status_code", None), "code": getattr(error, "code", None)}

    return {
        "plain": lambda: chat(model).chat(asked).message.content,
        "stream": stream,
        "tool": tool,
        "failure": failure,
        "receipt": lambda: chat("fine").chat(asked).raw.headwater["receipt"].startswith("call_"),
    }


def pydantic_ai(url: str, key: str, model: str, _: Path) -> Cases:
    """Pydantic's agents."""
    import asyncio

    from pydantic_ai import Agent
    from pydantic_ai.exceptions import ModelHTTPError
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key=key)

    def agent(name: str) -> Agent:
        return Agent(OpenAIChatModel(name, provider=provider), model_settings={"max_tokens": 12})

    async def streamed() -> Any:
        async with agent(model).run_stream(QUESTION) as result:
            texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
            used = result.usage() if callable(result.usage) else result.usage
        return {"text": "".join(texts), "pieces": len(texts), "usage": used.output_tokens}

    def tool() -> Any:
        calls: list[str] = []
        asking = agent("tools-once")

        @asking.tool_plain
        def gauge(station: str) -> str:
            """Reads a gauge."""
            calls.append(station)
            return "4711"

        said = asking.run_sync(QUESTION).output
        return {"name": "gauge", "arguments": {"station": calls[0]}, "said": said}

    def called() -> Any:
        from typing import Literal

        from pydantic import BaseModel

        class Level(BaseModel):
            station: Literal["Upper Fall", "Lower Fall"]

        settings: Any = {"max_tokens": CALL_TOKENS, "parallel_tool_calls": False}
        asking = Agent(OpenAIChatModel(model, provider=provider), output_type=Level, model_settings=settings)
        return {"name": "level", "arguments": asking.run_sync(QUESTION).output.model_dump()}

    def failure() -> Any:
        try:
            agent("nothing").run_sync(QUESTION)
        except ModelHTTPError as error:
            return {"status": error.status_code, "code": error.body["code"]}

    return {
        "plain": lambda: agent(model).run_sync(QUESTION).output,
        "stream": lambda: asyncio.run(streamed()),
        "tool": tool,
        "called": called,
        "failure": failure,
    }


def llm(url: str, key: str, model: str, folder: Path) -> Cases:
    """The `llm` tool's library, with models of its own file."""
    rows = [
        {"model_id": f"hw-{name}", "model_name": name, "api_base": url, "api_key_name": "hw", "supports_tools": True}
        for name in (model, "tools", "fine", "nothing")
    ]
    folder.joinpath("extra-openai-models.yaml").write_text(json.dumps(rows))  # JSON is YAML
    folder.joinpath("keys.json").write_text(json.dumps({"hw": key}))
    os.environ["LLM_USER_PATH"] = str(folder)
    import llm as library

    def stream() -> Any:
        answer = library.get_model(f"hw-{model}").prompt(QUESTION, max_tokens=12)
        texts = [text for text in answer if text]
        return {"text": "".join(texts), "pieces": len(texts), "usage": answer.usage().output}

    def gauge(station: str) -> str:
        """Reads a gauge."""
        return station

    def tool() -> Any:
        call = library.get_model("hw-tools").prompt(QUESTION, tools=[gauge]).tool_calls()[0]
        return {"name": call.name, "arguments": call.arguments}

    def failure() -> Any:
        try:
            library.get_model("hw-nothing").prompt(QUESTION, stream=False).text()
        except Exception as error:
            cause = error if hasattr(error, "status_code") else error.__cause__
            return {"status": getattr(cause, "status_code", None), "code": getattr(cause, "code", None)}

    def receipt() -> Any:
        answer = library.get_model("hw-fine").prompt(QUESTION, stream=False)
        answer.text()
        return answer.response_json["headwater"]["receipt"].startswith("call_")

    return {
        "plain": lambda: library.get_model(f"hw-{model}").prompt(QUESTION, stream=False, max_tokens=12).text(),
        "stream": stream,
        "tool": tool,
        "failure": failure,
        "receipt": receipt,
    }


def main() -> None:
    """Run every case of one client."""
    client, url, key, model, folder = sys.argv[1:]
    found: dict[str, Any] = {}
    for name, case in globals()[client](url, key, model, Path(folder)).items():
        try:
            found[name] = case()
        except Exception as error:
            found[name] = f"error: {type(error).__name__}: {error}"[:400]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
