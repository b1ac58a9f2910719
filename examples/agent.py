"""A loop of tool calls through the server, with a calculator whose answers can be checked.

    python examples/agent.py data --out sums.jsonl                       # conversations to learn from
    python train.py --config configs/assistant/calculator.yaml data.path=sums.jsonl
    jaxformer serve --model agent=runs/calculator
    python examples/agent.py ask --model agent --question "What is 384 + 571?"
    python examples/agent.py ask --model agent --count 200               # how many of 200 new sums are right

The model writes a call of ``calculator``, the loop computes it and sends the result back, the model answers: the
messages of any agent. The calculator reads an expression by Python's ``ast`` and executes nothing else.
"""

import argparse
import ast
import json
import math
import operator
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MOST_CALLS = 4
OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Computes a sum, a difference or a product of whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
            "additionalProperties": False,
        },
    },
}
WORDS = {"+": ("plus", "and"), "-": ("minus",), "*": ("times",)}
QUESTIONS = ("What is {sum}?", "How much is {sum}?", "Compute {sum}.", "I have to know {sum}.")


class Sum(NamedTuple):
    """A question and its answer."""

    question: str
    expression: str
    answer: int


def calculate(expression: str) -> int:
    """The value of an expression of whole numbers, ``+``, ``-`` and ``*``.

    >>> calculate("12 * (3 + 4)")
    84

    Raises:
        ValueError: it is anything else.
    """

    def value(node: Any) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"{expression!r} is no sum, difference or product of whole numbers")

    if len(expression) > 200:
        raise ValueError("the expression is too long")
    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError):
        raise ValueError(f"{expression!r} is no expression") from None


def sums(seed: int) -> Iterator[Sum]:
    """Yields questions for ever."""
    chosen = random.Random(seed)
    while True:
        sign = chosen.choice("+-*")
        left, right = (chosen.randrange(1, 1000) for _ in range(2))
        expression = f"{left} {sign} {right}"
        shown = expression if chosen.random() < 0.5 else f"{left} {chosen.choice(WORDS[sign])} {right}"
        yield Sum(chosen.choice(QUESTIONS).format(sum=shown), expression, calculate(expression))


def conversation(one: Sum) -> list[dict[str, Any]]:
    """The messages of a question that is answered as it should be."""
    call = {"name": "calculator", "arguments": {"expression": one.expression}}
    return [
        {"role": "user", "content": one.question},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": str(one.answer)},
        {"role": "assistant", "content": f"It is {one.answer}."},
    ]


def ask(client: Any, model: str, question: str) -> list[dict[str, Any]]:
    """The messages from a question to an answer without calls."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for _ in range(MOST_CALLS):
        made = client.chat.completions.create(model=model, messages=messages, tools=[TOOL], temperature=0)
        said = made.choices[0].message
        messages.append(said.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        if not said.tool_calls:
            break
        for call in said.tool_calls:
            try:
                result = str(calculate(json.loads(call.function.arguments)["expression"]))
            except (ValueError, KeyError, TypeError) as error:
                result = f"error: {error}"
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return messages


def is_right(messages: list[dict[str, Any]], answer: int) -> bool:
    """True if the last message has the answer as its only number."""
    said = str(messages[-1].get("content") or "").rstrip(".").split()
    return [word for word in said if word.lstrip("-").isdigit()] == [str(answer)]


def main() -> None:
    """Writes conversations, or asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write conversations to learn from")
    data.add_argument("--out", type=Path, required=True)
    data.add_argument("--rows", type=int, default=20_000)
    asking = commands.add_parser("ask", help="ask one question, or many sums")
    asking.add_argument("--server", default="http://127.0.0.1:8000/v1")
    asking.add_argument("--model", required=True)
    asking.add_argument("--question")
    asking.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    if options.command == "data":
        with options.out.open("w", encoding="utf-8") as file:
            for _, one in zip(range(options.rows), sums(0), strict=False):
                file.write(json.dumps({"messages": conversation(one), "tools": [TOOL]}) + "\n")
        print(f"written: {options.out}")
        return
    import openai

    client = openai.OpenAI(base_url=options.server, api_key="none")
    if options.question:
        for message in ask(client, options.model, options.question):
            print(json.dumps(message, ensure_ascii=False))
        return
    right = called = 0
    for _, one in zip(range(options.count), sums(1), strict=False):
        messages = ask(client, options.model, one.question)
        called += any(message["role"] == "tool" for message in messages)
        right += is_right(messages, one.answer)
    share = right / options.count
    half = 1.96 * math.sqrt(share * (1 - share) / options.count)
    print(
        f"{right:,} of {options.count:,} sums are right: {share:.3f} ± {half:.3f} (95 %); for {called:,} the "
        "calculator was called"
    )


if __name__ == "__main__":
    main()
