"""Tools written into plain messages, for checkpoints whose chat template knows nothing of them.

The texts are the ones that the models were taught with: Qwen2.5's template for Hermes, and for ReAct the first generation's
own server (https://github.com/QwenLM/Qwen, `openai_api.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from services.model.calling import CLOSE, OPEN
from services.model.messages import Message, ToolCall
from services.model.tools import Tool

_HERMES_SYSTEM = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{declared}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
_REACT_TOOL = (
    "{name}: Call this tool to interact with the {name} API. What is the {name} API useful for? {description} "
    "Parameters: {parameters} Format the arguments as a JSON object."
)
_REACT = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: """


def fold_hermes(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Messages of system, user and assistant alone."""
    folded: list[Message] = []
    for message in messages:
        if message.role == "assistant" and message.tool_calls:
            calls = [f"{OPEN}\n{_called(call)}\n{CLOSE}" for call in message.tool_calls]
            folded.append(Message("assistant", "\n".join([message.content, *calls] if message.content else calls)))
        elif message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if folded and folded[-1].role == "user" and folded[-1].content.startswith("<tool_response>"):
                result = folded.pop().content + "\n" + result
            folded.append(Message("user", result))
        else:
            folded.append(message)
    if tools:
        declared = "\n".join(json.dumps(tool.declared(), ensure_ascii=False) for tool in tools)
        text = _HERMES_SYSTEM.format(declared=declared)
        if folded[0].role == "system":
            folded[0] = replace(folded[0], content=f"{folded[0].content}\n\n{text}")
        else:
            folded.insert(0, Message("system", text))
    return folded


def _called(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": call.parsed()}, ensure_ascii=False)


def fold_react(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], str]:
    """Messages of system, user and assistant alone, and what the assistant's open turn already says: after the result of a
    call the model goes on in the turn that made it."""
    folded: list[Message] = []
    asked = False
    for message in messages:
        if message.role == "tool":
            said = folded.pop().content if folded and folded[-1].role == "assistant" else ""
            folded.append(Message("assistant", f"{said}\nObservation: {message.content}"))
        elif message.role == "assistant":
            said = message.content
            for call in message.tool_calls:  # one, as the model made it; more only from another model's history
                thought = message.reasoning or "I should call an API."
                said = f"{said}\n" if said else ""
                said += f"Thought: {thought}\nAction: {call.name}\nAction Input: {call.arguments}"
            if folded and folded[-1].role == "assistant":  # after a result the turn goes on
                if not message.tool_calls:
                    said = f"Thought: I now know the final answer.\nFinal Answer: {said}"
                said = f"{folded.pop().content}\n{said}"
            folded.append(Message("assistant", said))
        elif message.role == "user" and tools and not asked:
            asked = True
            folded.append(Message("user", _instruction(tools) + message.content))
        else:
            folded.append(message)
    if folded and folded[-1].role == "assistant" and messages[-1].role == "tool":
        return folded[:-1], folded[-1].content + "\nThought:"
    return folded, ""


def _instruction(tools: Sequence[Tool]) -> str:
    described = [
        _REACT_TOOL.format(
            name=tool.name,
            description=tool.description,
            parameters=json.dumps(tool.parameters, ensure_ascii=False),
        )
        for tool in tools
    ]
    return _REACT.format(tools="\n\n".join(described), names=",".join(tool.name for tool in tools))
